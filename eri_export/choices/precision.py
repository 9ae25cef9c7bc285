"""The type each component computes in, and the modules that stay float32 in a 16-bit component.

Norms need no entry: their graphs compute the statistics in float32 (`stash_type`, or casts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from eri_runtime.bundle import Family, Precision, spec
from eri_runtime.errors import UnknownNameError, short

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
REST = "*"  # every component that is not named
VAE_HALVES = ("vae_decoder", "vae_encoder")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "vae": VAE_HALVES,
    "unet": ("denoiser",),
    "transformer": ("denoiser",),
}
COMPONENTS = tuple(dict.fromkeys(name for names in spec.COMPONENTS.values() for name in names))

# Components that need a wider type than the rest -> the precision they compute in instead. The
# activations of SDXL's VAE overflow float16. T5's residual stream loses a twentieth in bfloat16: on
# OpenVINO the embedded SD3.5's was off by 5.8e-2, and such a bundle had no backend on a CPU.
WIDENED: Mapping[tuple[Family, Precision], Mapping[str, Precision]] = {
    ("sdxl", "fp16"): dict.fromkeys(VAE_HALVES, "fp32"),
    ("sd35", "bf16"): {"text_encoder_3": "fp32"},
    ("flux", "bf16"): {"text_encoder_2": "fp32"},
}

# Modules that stay float32. Timesteps run to 1000, and 16 bits round their sinusoids too much; the
# layers that read them are only a few megabytes. T5's `wo` feeds a residual stream beyond 65504.
TIME_EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("time_embedding", "add_embedding"),
    "SD3Transformer2DModel": ("time_text_embed",),
    "FluxTransformer2DModel": ("time_text_embed",),
}
KEPT: Mapping[Precision, Mapping[str, tuple[str, ...]]] = {
    "fp16": {**TIME_EMBEDDINGS, "T5EncoderModel": ("wo",)},
    "bf16": TIME_EMBEDDINGS,
}


@dataclass(frozen=True)
class Policy:
    """The precision of each component of a bundle.

    Attributes:
        rest: The precision of every component that `named` does not list.
        named: Precisions of single components, by the bundle's names, such as "vae_decoder".
    """

    rest: Precision = "fp32"
    named: Mapping[str, Precision] = field(default_factory=dict)

    def of(self, family: Family, component: str) -> Precision:
        """Returns the precision of one component.

        A component that is not in `named` gets `rest`, or float32 where `rest` would overflow, as
        float16 does in SDXL's VAE, or lose too much, as bfloat16 does in T5.

        Args:
            family: The checkpoint's family.
            component: The component's name in the bundle.

        Returns:
            "fp32", "fp16" or "bf16".
        """
        default = WIDENED.get((family, self.rest), {}).get(component, self.rest)
        return self.named.get(component, default)


def make_policy(precision: str | Mapping[str, str]) -> Policy:
    """Makes a `Policy` of a precision, or of a precision for each component.

    Args:
        precision: Text such as "fp16" or "fp16,vae=fp32", or a mapping such as
            {"*": "fp16", "vae": "fp32"}, where "*" is every component that is not named.

    Returns:
        The policy; components without a precision get fp32.

    Raises:
        UnknownNameError: If a precision or a component is unknown.

    Example:
        >>> from eri_export.choices import make_policy
        >>> policy = make_policy("fp16,vae=fp32")
        >>> policy.of("sd35", "denoiser"), policy.of("sd35", "vae_decoder")
        ('fp16', 'fp32')
    """
    by_name = _parse(precision) if isinstance(precision, str) else dict(precision)
    checked = {name: _check(name, value) for name, value in by_name.items()}
    rest = checked.pop(REST, "fp32")
    named = {
        component: value
        for name, value in checked.items()
        for component in ALIASES.get(name, (name,))
    }
    return Policy(rest, named)


def _parse(text: str) -> dict[str, str]:
    items = (item.strip().partition("=") for item in text.split(","))
    return {name if equals else REST: value if equals else name for name, equals, value in items}


def _check(name: str, value: str) -> Precision:
    """Returns `value` as a precision; raises `UnknownNameError` for an unknown name or value."""
    if name not in (REST, *ALIASES, *COMPONENTS):
        expected = ", ".join((*COMPONENTS, *ALIASES))
        raise UnknownNameError("precision: component", got=short(name), expected=expected)
    for known in PRECISIONS:
        if value == known:
            return known
    raise UnknownNameError(f"precision of {name}", got=value, expected=" or ".join(PRECISIONS))
