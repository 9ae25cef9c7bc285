"""Which component computes in which type, and what stays float32 inside a 16-bit one.

Norms need no entry: their graphs compute the statistics in float32 (`stash_type`, or casts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from eri_runtime import spec
from eri_runtime.errors import UnknownNameError
from eri_runtime.spec import Family, Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
REST = "*"  # every component that is not named
HALVES = ("vae_decoder", "vae_encoder")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "vae": HALVES,
    "unet": ("denoiser",),
    "transformer": ("denoiser",),
}
COMPONENTS = tuple(dict.fromkeys(name for names in spec.COMPONENTS.values() for name in names))

# Components whose activations leave float16's range: what they compute in instead.
OVERFLOWING: Mapping[tuple[Family, Precision], Mapping[str, Precision]] = {
    ("sdxl", "fp16"): dict.fromkeys(HALVES, "fp32"),
}

# Modules that stay float32. The sinusoids of a clock that runs to 1000 are worth more than the few
# megabytes of the layers that read them; T5's `wo` feeds a residual stream beyond 65504.
CLOCKS: Mapping[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("time_embedding", "add_embedding"),
    "SD3Transformer2DModel": ("time_text_embed",),
    "FluxTransformer2DModel": ("time_text_embed",),
}
KEPT: Mapping[Precision, Mapping[str, tuple[str, ...]]] = {
    "fp16": {**CLOCKS, "T5EncoderModel": ("wo",)},
    "bf16": CLOCKS,
}


@dataclass(frozen=True)
class Policy:
    """One precision for all, but for the components that are `named`."""

    rest: Precision = "fp32"
    named: Mapping[str, Precision] = field(default_factory=dict)

    def of(self, family: Family, component: str) -> Precision:
        """The precision of a component of the bundle: as named, or what it needs of the rest."""
        needed = OVERFLOWING.get((family, self.rest), {}).get(component, self.rest)
        return self.named.get(component, needed)


def make_policy(precision: str | Mapping[str, str]) -> Policy:
    """`fp16`, `fp16,vae=fp32`, or {"*": "fp16", "vae": "fp32"}.

    Raises `UnknownNameError` for a precision or component that there is not.
    """
    given = _parsed(precision) if isinstance(precision, str) else dict(precision)
    for name, value in given.items():
        if name not in (REST, *ALIASES, *COMPONENTS):
            expected = ", ".join((*COMPONENTS, *ALIASES))
            raise UnknownNameError("precision: component", got=repr(name), expected=expected)
        if value not in PRECISIONS:
            raise UnknownNameError(
                f"precision of {name}", got=value, expected=" or ".join(PRECISIONS)
            )
    rest = given.pop(REST, "fp32")
    return Policy(
        rest,  # type: ignore[arg-type]
        {each: value for name, value in given.items() for each in ALIASES.get(name, (name,))},  # type: ignore[misc]
    )


def _parsed(text: str) -> dict[str, str]:
    items = (item.strip().partition("=") for item in text.split(","))
    return {name if equals else REST: value if equals else name for name, equals, value in items}
