"""What a Triton repository holds for each component of a bundle: an ONNX graph or a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from eri_runtime.bundle import Bundle, ComponentSpec, PlanSpec, TensorSpec
from eri_runtime.errors import BackendError, ManifestError
from eri_runtime.triton.config import DYNAMIC, DataType, ModelConfig, Tensor

DATA_TYPES: Mapping[str, DataType] = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
GRAPH = "model.onnx"
UNUSABLE = {"stripped", "streaming"}  # plans that Triton's backend cannot give their weights


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a repository.

    Attributes:
        config: Its configuration.
        files: Files of the bundle by their names in the version's folder.
    """

    config: ModelConfig
    files: Mapping[str, str]


def onnx_model(bundle: Bundle, name: str) -> Model:
    """Returns the model that runs a component's graph on ONNX Runtime.

    Raises `ManifestError` if its weights lie outside the graph's folder.
    """
    component = bundle.components[name]
    folder, weights = PurePosixPath(component.graph).parent, PurePosixPath(component.weights)
    if not weights.is_relative_to(folder):
        expected = f"a file below {folder}, where {component.graph} finds it"
        raise ManifestError(f"{name}.weights", got=component.weights, expected=expected)
    files = {GRAPH: component.graph, str(weights.relative_to(folder)): component.weights}
    config = ModelConfig(
        name=name,
        backend="onnxruntime",
        file=GRAPH,
        inputs=_tensors(component.inputs),
        outputs=_tensors(component.outputs),
    )
    return Model(config=config, files=files)


def plan_model(bundle: Bundle, name: str) -> Model:
    """Returns the model that runs a component's TensorRT plans, one for each GPU.

    Of several plans for one GPU it takes that of the newest TensorRT.

    Raises `BackendError` if the bundle has no plan of the component that Triton can run.
    """
    component = bundle.components[name]
    plans = _newest(bundle, component)
    if not plans:
        raise BackendError(
            f"{bundle.root}: {name}",
            got="no plan that Triton can run",
            expected="a plan of the engine tensorrt that holds its weights",
            fix=f"run `eri build {bundle.root} --engine tensorrt --component {name}`",
        )
    names = {capability: f"model_{capability}.plan" for capability in plans}
    first = next(iter(plans))
    profiles = len(bundle.plans[plans[first]].profiles)
    config = ModelConfig(
        name=name,
        backend="tensorrt",
        file=names[first],
        inputs=_tensors(component.inputs),
        outputs=_tensors(component.outputs),
        kind="KIND_GPU",
        profiles=tuple(range(profiles)) if profiles > 1 else (),
        files_by_capability=names,
    )
    return Model(config=config, files={names[each]: file for each, file in plans.items()})


def _newest(bundle: Bundle, component: ComponentSpec) -> dict[str, str]:
    """Returns the file of the newest usable plan of a component's graph, by compute capability."""
    usable = sorted(_usable(bundle, component.graph))  # so the newest of a capability comes last
    return {capability: file for capability, _, file in usable}


def _usable(bundle: Bundle, graph: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yields capability, version and file of each plan that Triton can run."""
    for file, plan in bundle.plans.items():
        if plan.graph == graph and plan.engine == "tensorrt" and not UNUSABLE & {*plan.flags}:
            for capability in plan.capabilities:
                yield capability, _version(plan), file


def _version(plan: PlanSpec) -> tuple[int, ...]:
    """Returns the version of TensorRT that built a plan, as numbers."""
    return tuple(int(part) for part in plan.version.split(".") if part.isdecimal())


def _tensors(tensors: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
    """Returns tensors of a graph as Triton describes them."""
    return tuple(
        Tensor(
            name=tensor.name,
            data_type=DATA_TYPES[tensor.dtype],
            dims=tuple(size if isinstance(size, int) else DYNAMIC for size in tensor.shape),
        )
        for tensor in tensors
    )
