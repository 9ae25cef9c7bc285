"""What is measured: the models, what each is measured with, and how far two results may differ.

Also where each bundle lies, by the digest of what it is made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from eri_runtime.result import eri_version
from eri_runtime.spec import Family, Precision

Device = Literal["cuda", "cpu"]
Scale = Literal["full", "tiny"]
Part = Literal["bundle", "plan", "parity", "latency", "memory"]
PARTS: tuple[Part, ...] = ("bundle", "plan", "parity", "latency", "memory")
ENGINES = ("tensorrt", "tensorrt-rtx")  # run plans, so they must be built first
GUIDANCE = 4.0
SCHEME = 1  # of the random weights, in every digest: raise it when their values change
WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pipeline `tiny` of the tests, or the denoiser of a `published` model at full size.

    Both are names: a process that measures an engine's memory must not import torch for them.
    """

    scale: Scale
    family: Family
    precision: Precision
    size: int
    published: str | None = None
    tiny: str | None = None


MODELS: Mapping[str, Model] = {
    "tiny-sdxl": Model(scale="tiny", family="sdxl", precision="fp32", size=32, tiny="tiny_sdxl"),
    "tiny-sd35": Model(scale="tiny", family="sd35", precision="fp32", size=32, tiny="tiny_sd35"),
    "tiny-flux": Model(scale="tiny", family="flux", precision="fp32", size=32, tiny="tiny_flux"),
    "sdxl": Model(scale="full", family="sdxl", precision="fp16", size=1024, published="sdxl-base"),
    "sd35": Model(
        scale="full", family="sd35", precision="fp16", size=1024, published="sd3.5-medium"
    ),
    "sd35-large": Model(
        scale="full", family="sd35", precision="fp16", size=1024, published="sd3.5-large"
    ),
    "flux": Model(scale="full", family="flux", precision="bf16", size=1024, published="flux-dev"),
}
GROUPS = {"tiny": tuple(name for name in MODELS if name.startswith("tiny-"))}

# largest difference over largest value. `component` is one evaluation, `trajectory` a few steps
# with CFG, which multiplies a rounding by 2·GUIDANCE − 1; `loop` is one engine beside itself.
# Those of 16 bits are estimates: no GPU has been asked yet.
LIMITS: Mapping[str, Mapping[Precision, float]] = {
    "component": {"fp32": 1e-4, "fp16": 3e-2, "bf16": 1e-1},
    "trajectory": {"fp32": 1e-3, "fp16": 5e-2, "bf16": 1.5e-1},
    "loop": {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmark; `seconds` is for the timed rounds of one model."""

    device: Device
    models: tuple[str, ...]
    backends: tuple[str, ...]
    torch: tuple[str, ...] = ("eager", "compile")
    sizes: tuple[int, ...] = ()
    steps: int = 4
    rounds: int = 10
    seconds: float = 60.0
    folder: Path = Path("engines/gpu-benchmark")

    def cases(self) -> tuple[Case, ...]:
        """Every model at every size: its own where none was named, or where it is tiny."""
        return tuple(
            Case(model=name, size=size)
            for name in self.models
            for size in (self.sizes if MODELS[name].scale == "full" else ()) or (MODELS[name].size,)
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The settings that `to_json` gave."""
        lists = ("models", "backends", "torch", "sizes")
        return cls(
            **{
                **values,
                **{name: tuple(values[name]) for name in lists},
                "folder": Path(values["folder"]),
            }
        )


@dataclass(frozen=True)
class Case:
    """A model at a size in pixels a side."""

    model: str
    size: int

    @property
    def spec(self) -> Model:
        """The model, of this size."""
        return replace(MODELS[self.model], size=self.size)

    def __str__(self) -> str:
        return f"{self.model} {self.size}"

    @property
    def digest(self) -> str:
        """What its bundle is made from, in 12 hexadecimal digits; configs are eri's version's."""
        spec = self.spec
        source = spec.published or spec.tiny
        facts = [self.model, source, spec.precision, spec.size, SCHEME, eri_version()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def bundle(self, folder: Path) -> Path:
        """Where its bundle lies in `folder`, or will."""
        return folder / f"{self.model}-{self.size}-{self.digest}"

    def checkpoint(self, folder: Path) -> Path:
        """Where its checkpoint lies; at full size without data, once the bundle is made."""
        return folder / f"{self.model}-{self.size}-{self.digest}-checkpoint"
