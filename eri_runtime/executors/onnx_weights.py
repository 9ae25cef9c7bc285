"""Weights of an ONNX graph that its engine cannot open, because a link leads out of the folder.

A graph names its weights file by a path relative to its own folder. In the cache of the Hugging
Face Hub every file is a link to another folder, and engines refuse to follow such a link. Then the
weights are mapped here and given to the engine by name.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from eri_runtime.bundle import ComponentSpec, TensorFile, read_tensors
from eri_runtime.executors.onnx_message import (
    INITIALIZER,
    INPUT,
    ExternalTensor,
    encoded,
    external_tensor,
    fields_of,
    number,
    with_graph,
)


def linked_weights(
    graph: Path, spec: ComponentSpec, *, follows_graph: bool = False
) -> TensorFile | None:
    """Maps the weights of a graph if a link leads from them out of the graph's folder.

    Args:
        graph: An ONNX file of the component.
        spec: The component.
        follows_graph: Whether the engine also opens weights in the folder that a link to the graph
            leads to.

    Returns:
        The weights, or None if the engine can open them.
    """
    weights = weights_file(graph, spec)
    folders = [graph.parent.resolve(), *([graph.resolve().parent] if follows_graph else [])]
    return None if weights.resolve().parent in folders else read_tensors(weights)


def weights_file(graph: Path, spec: ComponentSpec) -> Path:
    """Returns the file from which an engine reads the weights of a component's graph."""
    return graph.with_name(PurePosixPath(spec.weights).name)


def weights_as_inputs(model: bytes, only: Collection[str] | None = None) -> tuple[bytes, list[str]]:
    """Returns a model whose external weights are inputs instead, and their names.

    Args:
        model: A ModelProto.
        only: The names of the weights to make inputs. Default: all.
    """
    names: list[str] = []

    def with_inputs(graph: memoryview) -> bytes:
        fields = []
        for field in fields_of(graph):
            tensor = external_tensor(field) if field.number == INITIALIZER else None
            if tensor is None or (only is not None and tensor.name not in only):
                fields.append(bytes(field.raw))
                continue
            names.append(tensor.name)
            fields.append(encoded(INPUT, _value_info(tensor)))
        return b"".join(fields)

    return with_graph(model, with_inputs), names


def _value_info(tensor: ExternalTensor) -> bytes:
    """Returns a ValueInfoProto with the name, type and shape of a tensor."""
    # TensorShapeProto.dim, .dim_value; TypeProto.Tensor.elem_type, .shape; ValueInfoProto.type
    shape = b"".join(encoded(1, number(1, dim)) for dim in tensor.shape)
    tensor_type = number(1, tensor.data_type) + encoded(2, shape)
    return encoded(1, tensor.name.encode()) + encoded(2, encoded(1, tensor_type))
