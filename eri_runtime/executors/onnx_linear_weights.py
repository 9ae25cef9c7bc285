"""The weights of a graph's linear layers, and graphs in which they can be replaced.

A weight belongs to linear layers if every node that reads it multiplies by it: a `Gemm`, or a
`MatMul` behind a `Transpose`. So no other value of the graph depends on such a weight alone, and
an optimizer that is not shown its values cannot keep a value that it computed from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from eri_runtime.executors.onnx_message import (
    DATA_LOCATION,
    DATA_TYPE,
    DIMS,
    EXTERNAL,
    EXTERNAL_DATA,
    FLOAT,
    INITIALIZER,
    INPUT,
    KEY,
    NAME,
    NODE,
    VALUE,
    ExternalTensor,
    encoded,
    external_tensor,
    fields_of,
    graph_fields,
    message_of,
    number,
    text_of,
    with_graph,
)

NODE_INPUT, NODE_OUTPUT, NODE_TYPE = 1, 2, 4  # of a NodeProto
VALUE_NAME = 1  # of a ValueInfoProto
FACTOR = 1  # the input of MatMul and Gemm that is a layer's weight


class Use(NamedTuple):
    """A node that reads a value.

    Attributes:
        operator: The node's operator.
        position: The position of the value among its inputs.
        output: Its first output.
    """

    operator: str
    position: int
    output: str


def linear_weights(model: bytes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the float32 weights that belong to linear layers alone, by name."""
    tensors: dict[str, ExternalTensor] = {}
    uses: dict[str, list[Use]] = defaultdict(list)
    for field in graph_fields(model):
        if field.number == NODE:
            _add_uses(message_of(field), uses)
        elif field.number == INITIALIZER and (tensor := external_tensor(field)) is not None:
            tensors[tensor.name] = tensor
    return {
        name: tensor.shape
        for name, tensor in tensors.items()
        if tensor.data_type == FLOAT and len(tensor.shape) == 2 and _is_linear(name, uses)
    }


def _add_uses(node: memoryview, uses: dict[str, list[Use]]) -> None:
    """Adds what a NodeProto reads."""
    texts: dict[int, list[str]] = defaultdict(list)
    for field in fields_of(node):
        if field.number in (NODE_INPUT, NODE_OUTPUT, NODE_TYPE):
            texts[field.number].append(text_of(field))
    for position, name in enumerate(texts[NODE_INPUT]):
        uses[name].append(Use(texts[NODE_TYPE][0], position, texts[NODE_OUTPUT][0]))


def _is_linear(name: str, uses: Mapping[str, list[Use]]) -> bool:
    """Returns whether something reads a weight, and only as the factor of a linear layer."""
    return bool(uses.get(name)) and all(
        _is_factor(use, "Gemm")
        or (
            use.operator == "Transpose"
            and all(_is_factor(each, "MatMul") for each in uses.get(use.output, ()))
        )
        for use in uses[name]
    )


def _is_factor(use: Use, operator: str) -> bool:
    """Returns whether a node of this operator multiplies by the value."""
    return use.operator == operator and use.position == FACTOR


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """Returns the initializers of a model whose values are in other files."""
    found = (external_tensor(each) for each in graph_fields(model) if each.number == INITIALIZER)
    return [each for each in found if each is not None]


def inputs_as_weights(model: bytes, weights: Mapping[str, tuple[int, ...]], location: str) -> bytes:
    """Returns a model with some float32 inputs as initializers instead, in a file.

    Args:
        model: A ModelProto.
        weights: The inputs' shapes by name.
        location: The name of the file.
    """

    def with_weights(graph: memoryview) -> bytes:
        fields = []
        for field in fields_of(graph):
            name = _value_name(message_of(field)) if field.number == INPUT else ""
            if name in weights:
                fields.append(encoded(INITIALIZER, _tensor(name, weights[name], location)))
            else:
                fields.append(bytes(field.raw))
        return b"".join(fields)

    return with_graph(model, with_weights)


def _value_name(value: memoryview) -> str:
    """Returns the name of a ValueInfoProto."""
    return next((text_of(each) for each in fields_of(value) if each.number == VALUE_NAME), "")


def _tensor(name: str, shape: tuple[int, ...], location: str) -> bytes:
    """Returns a float32 TensorProto whose values are in a file."""
    where = encoded(KEY, b"location") + encoded(VALUE, location.encode())
    return b"".join(
        [
            *(number(DIMS, size) for size in shape),
            number(DATA_TYPE, FLOAT),
            encoded(NAME, name.encode()),
            encoded(EXTERNAL_DATA, where),
            number(DATA_LOCATION, EXTERNAL),
        ]
    )
