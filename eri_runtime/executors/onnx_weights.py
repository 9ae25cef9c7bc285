"""Weights of an ONNX graph that its engine cannot open, because a link leads out of the folder.

A graph names its weights file by a path relative to its own folder. In the cache of the Hugging
Face Hub every file is a link to another folder, and engines refuse to follow such a link. Then the
weights are mapped here and given to the engine by name.

The graph is read as a protobuf message, since the runtime has no ONNX library: fields of a number,
a wire type and a value. https://protobuf.dev/programming-guides/encoding and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from eri_runtime.bundle import ComponentSpec, TensorFile, read_tensors

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
GRAPH = 7  # of a ModelProto
INITIALIZER, INPUT = 5, 11  # of a GraphProto: TensorProtos and ValueInfoProtos
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA = 1, 2, 8, 13  # of a TensorProto


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Its number.
        raw: All of its bytes.
        value: The bytes of a text, a message or a packed list; an integer for any other field.
    """

    number: int
    raw: memoryview
    value: memoryview | int


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


def weights_as_inputs(model: bytes) -> tuple[bytes, list[str]]:
    """Returns a model whose external weights are inputs instead, and their names."""
    fields: list[bytes] = []
    names: list[str] = []
    for field in _fields(memoryview(model)):
        if field.number == GRAPH:
            graph, names = _graph_with_inputs(_message(field))
            fields.append(_encoded(GRAPH, graph))
        else:
            fields.append(bytes(field.raw))
    return b"".join(fields), names


def _graph_with_inputs(graph: memoryview) -> tuple[bytes, list[str]]:
    """Does the work of `weights_as_inputs` for a GraphProto."""
    fields, names = [], []
    for field in _fields(graph):
        tensor = list(_fields(_message(field))) if field.number == INITIALIZER else []
        if any(each.number == EXTERNAL_DATA for each in tensor):
            name = next(bytes(_message(each)) for each in tensor if each.number == NAME)
            fields.append(_encoded(INPUT, _value_info(name, tensor)))
            names.append(name.decode())
        else:
            fields.append(bytes(field.raw))
    return b"".join(fields), names


def _value_info(name: bytes, tensor: Iterable[Field]) -> bytes:
    """Returns a ValueInfoProto with the name, type and shape of a TensorProto."""
    dims, data_type = [], 0
    for field in tensor:
        if field.number == DIMS:
            dims += [field.value] if isinstance(field.value, int) else _packed(field.value)
        elif field.number == DATA_TYPE and isinstance(field.value, int):
            data_type = field.value
    # TensorShapeProto.dim, .dim_value; TypeProto.Tensor.elem_type, .shape; ValueInfoProto.type
    shape = b"".join(_encoded(1, _number(1, dim)) for dim in dims)
    tensor_type = _number(1, data_type) + _encoded(2, shape)
    return _encoded(1, name) + _encoded(2, _encoded(1, tensor_type))


def _fields(message: memoryview) -> Iterator[Field]:
    """Yields the fields of a message; raises `ValueError` for one that is damaged."""
    position = 0
    while position < len(message):
        start = position
        key, position = _varint(message, position)
        wire = key & 7
        value: memoryview | int | None = None
        if wire == VARINT:
            value, position = _varint(message, position)
        elif wire == BYTES:
            size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            value = int.from_bytes(message[position : position + size], "little")
            position += size
        if value is None or position > len(message):
            raise ValueError(f"a damaged protobuf message: wire type {wire} at byte {start}")
        yield Field(key >> 3, message[start:position], value)


def _message(field: Field) -> memoryview:
    """Returns the bytes of a field that holds bytes; raises `ValueError` for any other."""
    if isinstance(field.value, int):
        raise ValueError(f"a damaged protobuf message: field {field.number} holds a number")
    return field.value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns the integer at a position, seven bits a byte, and the position after it."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
    raise ValueError("a damaged protobuf message: an integer without an end")


def _packed(values: memoryview) -> list[int]:
    """Returns the integers of a packed list."""
    numbers, position = [], 0
    while position < len(values):
        number, position = _varint(values, position)
        numbers.append(number)
    return numbers


def _encoded(number: int, value: bytes) -> bytes:
    """Encodes a field that holds bytes."""
    return _encoded_varint(number << 3 | BYTES) + _encoded_varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    """Encodes a field that holds an integer."""
    return _encoded_varint(number << 3 | VARINT) + _encoded_varint(value)


def _encoded_varint(value: int) -> bytes:
    """Encodes an integer, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
