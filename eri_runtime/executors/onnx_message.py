"""ONNX graphs as protobuf messages, since the runtime has no ONNX library.

A message is a sequence of fields of a number, a wire type and a value.
https://protobuf.dev/programming-guides/encoding and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
GRAPH = 7  # of a ModelProto
NODE, INITIALIZER, INPUT = 1, 5, 11  # of a GraphProto: NodeProtos, TensorProtos, ValueInfoProtos
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 13, 14  # of a TensorProto
KEY, VALUE = 1, 2  # of a StringStringEntryProto, an item of EXTERNAL_DATA
FLOAT = 1  # TensorProto.FLOAT, a DATA_TYPE
EXTERNAL = 1  # TensorProto.EXTERNAL, a DATA_LOCATION


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


class ExternalTensor(NamedTuple):
    """An initializer whose values are in another file.

    Attributes:
        name: Its name.
        data_type: The number of its type, as in `TensorProto.DataType`.
        shape: Its shape.
        where: What the graph says of the file, by key: `location`, `offset` and `length`.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    where: dict[str, str]


def fields_of(message: memoryview) -> Iterator[Field]:
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


def message_of(field: Field) -> memoryview:
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


def packed(values: memoryview) -> list[int]:
    """Returns the integers of a packed list."""
    numbers, position = [], 0
    while position < len(values):
        number, position = _varint(values, position)
        numbers.append(number)
    return numbers


def encoded(number: int, value: bytes) -> bytes:
    """Encodes a field that holds bytes."""
    return _encoded_varint(number << 3 | BYTES) + _encoded_varint(len(value)) + value


def number(number: int, value: int) -> bytes:
    """Encodes a field that holds an integer."""
    return _encoded_varint(number << 3 | VARINT) + _encoded_varint(value)


def _encoded_varint(value: int) -> bytes:
    """Encodes an integer, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def with_graph(model: bytes, change: Callable[[memoryview], bytes]) -> bytes:
    """Returns a ModelProto with a changed GraphProto."""
    return b"".join(
        encoded(GRAPH, change(message_of(field))) if field.number == GRAPH else bytes(field.raw)
        for field in fields_of(memoryview(model))
    )


def graph_fields(model: bytes) -> Iterator[Field]:
    """Yields the fields of a model's GraphProto."""
    for field in fields_of(memoryview(model)):
        if field.number == GRAPH:
            yield from fields_of(message_of(field))


def external_tensor(initializer: Field) -> ExternalTensor | None:
    """Reads a TensorProto; returns None if the graph itself has its values."""
    name, data_type = "", 0
    shape: list[int] = []
    where: dict[str, str] = {}
    for field in fields_of(message_of(initializer)):
        if field.number == EXTERNAL_DATA:
            entry = {each.number: text_of(each) for each in fields_of(message_of(field))}
            where[entry[KEY]] = entry[VALUE]
        elif field.number == NAME:
            name = text_of(field)
        elif field.number == DIMS:
            shape += [field.value] if isinstance(field.value, int) else packed(field.value)
        elif field.number == DATA_TYPE and isinstance(field.value, int):
            data_type = field.value
    return ExternalTensor(name, data_type, tuple(shape), where) if where else None


def text_of(field: Field) -> str:
    """Returns the text of a field; raises `ValueError` for a number."""
    return bytes(message_of(field)).decode()
