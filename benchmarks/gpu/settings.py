"""The settings of a run, the models in its folder, and limits on the difference of two results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from eri_runtime.bundle import Bundle, Precision, read_bundle

BackendName = Literal["cuda", "cpu"]
GUIDANCE = 4.0
WARM_STEPS = 2
CUDA_FORM = ".cuda.onnx"  # how the names of graphs in the form for CUDA end

# Limits on the largest difference over the largest value. `component` is one evaluation,
# `trajectory` a few steps with CFG, which multiplies a rounding error by 2·GUIDANCE − 1, `picture`
# two of 255 levels. On an H200 trajectories were off by 4e-3 in fp16 and 1.1e-2 in bf16.
LIMITS: Mapping[str, Mapping[Precision, float]] = {
    "component": {"fp32": 1e-4, "fp16": 3e-2, "bf16": 1e-1},
    "trajectory": {"fp32": 1e-3, "fp16": 5e-2, "bf16": 1.5e-1},
    "picture": {"fp32": 2 / 255, "fp16": 1e-1, "bf16": 1e-1},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmark.

    Attributes:
        folder: The unpacked parts: `bundles/` and `networks/`.
        backend: The backend of our subjects.
        rehearsal: PyTorch runs on the CPU, and every row says that this was no measurement.
        steps: Steps of each trajectory.
        rounds: Timed rounds, all subjects in turns.
        seconds: Most seconds of the rounds of one stage.
    """

    folder: Path
    backend: BackendName = "cuda"
    rehearsal: bool = False
    steps: int = 4
    rounds: int = 10
    seconds: float = 20.0

    @property
    def device(self) -> str:
        """PyTorch's device."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def garbage(self) -> bool:
        """Whether a stand-in plays the GPU, so that no number of our subjects means anything."""
        return self.rehearsal and self.backend == "cuda"

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as plain values."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the settings from the values of `to_json`."""
        return cls(**{**values, "folder": Path(values["folder"])})

    def model(self, name: str) -> Model:
        """Returns a model of the folder."""
        return Model(name, self.folder)


@dataclass(frozen=True)
class Network:
    """A network that PyTorch builds: its class in diffusers and its config."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A bundle in the folder, and its networks for PyTorch if it is one of full size."""

    name: str
    folder: Path

    @property
    def root(self) -> Path:
        """The bundle's folder."""
        return self.folder / "bundles" / self.name

    @property
    def bundle(self) -> Bundle:
        """The bundle's manifest."""
        return read_bundle(self.root)

    @property
    def networks(self) -> dict[str, Network]:
        """The networks by component; empty if the bundle is compared with the CPU instead."""
        file = self.folder / "networks" / f"{self.name}.json"
        if not file.is_file():
            return {}
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {name: Network(**each) for name, each in entries.items()}

    @property
    def reference(self) -> str:
        """The subject that the others are compared with."""
        return "torch/eager" if self.networks else "cpu/numpy"

    @property
    def expected(self) -> Path:
        """Where the reference's latents are kept for later stages."""
        return self.folder / "expected" / f"{self.name}.npz"

    def without_cuda_form(self) -> Bundle:
        """Returns the bundle in a second folder that has no graphs in the form for CUDA.

        Its files are hard links, because ONNX Runtime refuses weights behind a symbolic one.
        """
        target = self.folder / "plain" / self.name
        files = {n: file for n, file in self.bundle.files.items() if not n.endswith(CUDA_FORM)}
        for file in self.root.rglob("*"):
            copy = target / file.relative_to(self.root)
            if file.is_file() and not file.name.endswith(CUDA_FORM) and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.hardlink_to(file)
        return replace(self.bundle, root=target, pins=None, files=files)
