"""Reads an ONNX graph with OpenVINO, and compiles it for fixed or for dynamic shapes.

OpenVINO's own cache is off: it knows a model by its path and the time of its last change.
`compiled_models` keeps what is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from eri_runtime.bundle import TensorFile
from eri_runtime.executors.base import Arrays, Settings
from eri_runtime.executors.heap import trim_heap
from eri_runtime.executors.onnx_weights import weights_as_inputs
from eri_runtime.executors.openvino.gated_mlp import PRECISION, THREADS, safe_options
from eri_runtime.executors.openvino.library import import_openvino

Compute = Literal["f32", "bf16"]


def compile_options(compute: Compute, settings: Settings) -> Mapping[str, Any]:
    """Returns the options to compile a graph with.

    Threads are not pinned to cores: a pinned thread waits for whatever else runs on its core.
    """
    options = {PRECISION: compute, "ENABLE_CPU_PINNING": False}
    threads = {} if settings.threads is None else {THREADS: settings.threads}
    return {**options, **threads}


def read_model(core: Any, graph: Path, overrides: Arrays, linked: TensorFile | None = None) -> Any:
    """Reads a graph and replaces some of its constants, which use the memory of their arrays.

    Args:
        core: OpenVINO's `Core`.
        graph: The ONNX file.
        overrides: Tensors that replace tensors of the weights file.
        linked: The weights, if OpenVINO cannot open their file; see `linked_weights`.
    """
    if linked is None:
        model = core.read_model(graph)
        _set_constants(model, overrides)
        return model
    data, names = weights_as_inputs(graph.read_bytes())
    model = core.read_model(BytesIO(data))
    _set_constants(model, {name: overrides.get(name, linked[name]) for name in names})
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() in names:
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def _set_constants(model: Any, weights: Arrays) -> None:
    """Replaces nodes by constants of the same names, which use the memory of their arrays."""
    ov = import_openvino()
    nodes = {op.get_friendly_name(): op for op in model.get_ops()} if weights else {}
    for name, values in weights.items():
        old = nodes[name]
        # passed as raw bits, since OpenVINO does not know NumPy's bfloat16
        bits = values.view(f"u{values.itemsize}")
        shape = old.output(0).get_partial_shape().to_shape()
        constant = ov.op.Constant(
            ov.Tensor(bits, shape, old.output(0).get_element_type()), shared_memory=True
        )
        old.output(0).replace(constant.output(0))


def compile_model(
    core: Any,
    model: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    options: Mapping[str, Any],
) -> Any:
    """Compiles a model for these input shapes, or for any if None.

    Works on a copy: `model` itself does not change.
    """
    model = model.clone()
    options = safe_options(core, model, options)
    if options[PRECISION] == "bf16":
        _keep_angles_in_float32(model)
    if shapes is not None:
        model.reshape(dict(shapes))
    compiled = core.compile_model(model, "CPU", dict(options))
    trim_heap()
    return compiled


def _keep_angles_in_float32(model: Any) -> None:
    """Computes sines, cosines and everything that leads to them in float32.

    In bfloat16 the timestep, up to 1000, and its multiples would be wrong by radians, and so would
    the angles of rotary embeddings. OpenVINO keeps float32 on the way to an output, back to the
    nearest matrix product. So every sine and cosine becomes an output, which nothing reads.
    """
    for op in model.get_ops():
        if op.get_type_name() in ("Sin", "Cos"):
            model.add_outputs(op.output(0))
