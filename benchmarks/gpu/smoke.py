"""One convolution and one attention in float16: proves the loader, cuDNN and the kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.gpu import parity
from benchmarks.gpu.settings import Settings
from eri_runtime.bundle import ComponentSpec, TensorSpec
from eri_runtime.executors import BACKENDS
from eri_runtime.executors import Settings as EngineSettings

CHANNELS, SIDE, HEADS, WIDTH = 64, 16, 4, 16
SHAPE = (1, CHANNELS, SIDE, SIDE)
TOKENS = (1, HEADS, WIDTH, SIDE * SIDE)


def smoke(settings: Settings, _name: str, _subjects: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Runs the graph twice on the backend and compares it with NumPy; yields one row."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal(SHAPE, np.float32)
    kernel = (rng.standard_normal((CHANNELS, CHANNELS, 1, 1)) / CHANNELS**0.5).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.save(model(kernel), graph)
        with BACKENDS[settings.backend].executor(graph, SPEC, EngineSettings()) as executor:
            found = [executor.run({"image": image})["output"] for _ in range(2)][-1]
    error = parity.error(found, expected(image, kernel))
    yield {
        "part": "parity",
        "subject": settings.backend,
        "what": "convolution and attention",
        "against": "NumPy",
        "precision": "fp16",
        **parity.verdict(error, "component", "fp16"),
    }


def model(kernel: np.ndarray) -> onnx.ModelProto:
    """Returns the graph: a convolution whose channels become the heads of an attention."""
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        node("Conv", ["half", "kernel"], ["convolved"]),
        node("Reshape", ["convolved", "tokens"], ["by_head"]),
        node("Transpose", ["by_head"], ["q"], perm=[0, 1, 3, 2]),
        node("Attention", ["q", "q", "q"], ["attended"]),
        node("Cast", ["attended"], ["output"], to=TensorProto.FLOAT),
    ]
    constants = {"kernel": kernel, "tokens": np.array(TOKENS, np.int64)}
    graph = helper.make_graph(
        nodes,
        "smoke",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def expected(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Returns the graph's output, computed in float64."""
    weights = kernel[:, :, 0, 0].astype(np.float64)
    q = np.einsum("oc,bchw->bohw", weights, image).reshape(TOKENS).swapaxes(2, 3)
    scores = q @ q.swapaxes(2, 3) / WIDTH**0.5
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True) @ q).astype(np.float32)


SPEC = ComponentSpec(
    graph="model.onnx",
    weights="model.onnx",  # the graph holds its own
    precision="fp16",
    inputs=(TensorSpec(name="image", dtype="float32", shape=SHAPE),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(1, HEADS, SIDE * SIDE, WIDTH)),),
    ranges={},
    parameters=0,
    parity=0.0,
)
