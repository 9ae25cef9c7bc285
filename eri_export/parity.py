"""An exported graph beside PyTorch in float32, on the same rounded weights.

The reference reads the checkpoint, the graph reads the bundle: a weight that went wrong on the
way shows. Both read their weights from mapped files, so neither need fit in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from eri_export.names import file_names
from eri_export.passes.hidden_weights import weights_of
from eri_export.passes.widen import widen
from eri_export.recipes.base import Recipe, Sizes
from eri_export.stored import read_headers
from eri_export.weights import Conversion, bind, write_weights
from eri_runtime.errors import ParityError
from eri_runtime.executors.ort import OrtExecutor
from eri_runtime.spec import ComponentSpec, Precision

Arrays = Mapping[str, NDArray[Any]]
Subject = Literal["graph", "float32 twin"]

# Largest difference over largest reference value. Float32: another order of summation, a hundred
# layers deep. Float16: 11 bits, so 5e-4 a rounding, with some cancellation. A twin differs from
# float32 only where a constant was rounded to 8 or 11 bits, such as quick-GELU's 1.702.
TOLERANCES: Mapping[tuple[Precision, Subject], float] = {
    ("fp32", "graph"): 1e-4,
    ("fp16", "graph"): 3e-2,
    ("fp16", "float32 twin"): 1e-3,
    ("bf16", "float32 twin"): 5e-3,
}
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The error of one output at one set of sizes; NaN and Inf count as an infinite error."""

    component: str
    output: str
    subject: Subject
    sizes: Sizes
    max_abs: float
    max_rel: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True)
class Report:
    """Every comparison that was made; true if all of them passed."""

    passed: bool
    metrics: tuple[Metric, ...]

    def __bool__(self) -> bool:
        return self.passed

    @classmethod
    def of(cls, metrics: tuple[Metric, ...]) -> Report:
        """The report on `metrics`; on none at all it has not passed."""
        return cls(bool(metrics) and all(metric.passed for metric in metrics), metrics)

    def worst(self, component: str) -> float:
        """The largest relative error of a component, by its own graph where that could be run."""
        own = [metric for metric in self.metrics if metric.component == component]
        ran = [metric for metric in own if metric.subject == "graph"]
        return max(metric.max_rel for metric in ran or own)

    def check(self) -> None:
        """Raise `ParityError` naming the worst output, unless everything passed."""
        if self:
            return
        worst = max(self.metrics, key=lambda metric: metric.max_rel / metric.tolerance)
        raise ParityError(
            f"{worst.component}.{worst.output} at {dict(worst.sizes)}",
            got=f"a relative error of {worst.max_rel:.2g} ({worst.subject})",
            expected=f"at most {worst.tolerance:g}",
            fix="nothing was published",
        )

    def to_json(self) -> str:
        """The report as JSON; an infinite error, which JSON has no number for, is null."""
        metrics = [
            {
                name: None if isinstance(value, float) and math.isinf(value) else value
                for name, value in dataclasses.asdict(metric).items()
            }
            for metric in self.metrics
        ]
        return json.dumps({"passed": self.passed, "metrics": metrics}, indent=1, sort_keys=True)


def compare(recipe: Recipe, graph: Path, spec: ComponentSpec) -> tuple[Metric, ...]:
    """Run the published `graph` and PyTorch at every parity size of `recipe`."""
    with tempfile.TemporaryDirectory(dir=graph.parent.parent, prefix=".parity-") as scratch:
        cases = tuple(_cases(recipe, Path(scratch)))
        metrics: list[Metric] = []
        for subject, path in _subjects(graph, spec, Path(scratch)):
            with OrtExecutor(path, dataclasses.replace(spec, precision="fp32")) as executor:
                for sizes, inputs, expected in cases:
                    outputs = executor.run(inputs)
                    metrics += _measure(recipe, subject, sizes, outputs, expected)
    return tuple(metrics)


def _subjects(graph: Path, spec: ComponentSpec, scratch: Path) -> Iterator[tuple[Subject, Path]]:
    if spec.precision != "bf16":
        yield "graph", graph
    if spec.precision != "fp32":
        yield "float32 twin", _twin(graph, graph.with_name(Path(spec.weights).name), scratch)


def _twin(graph: Path, weights: Path, scratch: Path) -> Path:
    """Write the float32 twin of `graph`, with the bundle's own weights widened."""
    model = ir.load(graph)
    widen(model)
    stored = read_headers([weights])
    wide = [Conversion(stored[str(value.name)], torch.float32) for value in weights_of(model)]
    bind(model, write_weights(scratch / "twin.safetensors", wide).tensors)
    ir.save(model, scratch / "twin.onnx")
    return scratch / "twin.onnx"


def _cases(recipe: Recipe, scratch: Path) -> Iterator[tuple[Sizes, Arrays, Arrays]]:
    """Sizes, inputs and PyTorch's float32 outputs."""
    wrapper = recipe.wrap(_reference(recipe, scratch), torch.float32)
    names = [output.name for output in recipe.outputs]
    for sizes in recipe.sizes[1:]:
        inputs = recipe.sample(sizes, SEED)
        with torch.no_grad():
            result = wrapper(*(torch.from_numpy(value) for value in inputs.values()))
        results = result if isinstance(result, tuple) else (result,)
        outputs = (value.numpy() for value in results)
        yield sizes, inputs, dict(zip(names, outputs, strict=True))


def _reference(recipe: Recipe, scratch: Path) -> nn.Module:
    """The network in float32 with the checkpoint's weights, rounded as the bundle's are."""
    with torch.device("meta"):
        network = recipe.build().eval()
    names = file_names(network, recipe.source)
    rounding = {stored: recipe.weight_dtype(name) for name, stored in names.items()}
    wide = [
        Conversion(recipe.source.tensors[name], torch.float32, rounded=dtype)
        for name, dtype in rounding.items()
    ]
    write_weights(scratch / "reference.safetensors", wide)
    with safe_open(scratch / "reference.safetensors", framework="pt") as mapped:
        state = {name: mapped.get_tensor(stored) for name, stored in names.items()}
    network.load_state_dict(state, assign=True)
    return network


def _measure(
    recipe: Recipe, subject: Subject, sizes: Sizes, outputs: Arrays, expected: Arrays
) -> Iterator[Metric]:
    for name, reference in expected.items():
        max_abs = float(np.abs(outputs[name] - reference).max())
        largest = float(np.abs(reference).max())
        # a network that is still all zeros has no scale: then nothing but zeros will do
        max_rel = max_abs / largest if largest else max_abs * math.inf if max_abs else 0.0
        yield Metric(
            component=recipe.name,
            output=name,
            subject=subject,
            sizes=dict(sizes),
            max_abs=max_abs if math.isfinite(max_rel) else math.inf,
            max_rel=max_rel if math.isfinite(max_rel) else math.inf,
            tolerance=TOLERANCES[recipe.precision, subject],
        )
