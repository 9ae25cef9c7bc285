"""A model's configuration in Triton, and its text: the file `config.pbtxt`.

The fields are those of the message `ModelConfig` of Triton's protobuf/model_config.proto
(https://github.com/triton-inference-server/common).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

DataType = Literal[
    "TYPE_STRING",
    "TYPE_UINT8",
    "TYPE_INT32",
    "TYPE_INT64",
    "TYPE_UINT64",
    "TYPE_FP32",
    "TYPE_FP64",
]
Kind = Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"]
Field: TypeAlias = "tuple[str, str | list[Field]]"  # a name, and a value's text or a message

DYNAMIC = -1  # a size that each request chooses


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: Its name.
        data_type: Triton's name of its dtype.
        dims: Its sizes, with the batch; `DYNAMIC` for one that each request chooses.
        optional: Whether a request may leave it out; for inputs.
    """

    name: str
    data_type: DataType
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of one model; it never batches requests, and runs one instance a device.

    Attributes:
        name: The model's name, which is its folder's.
        backend: The backend that runs it: `onnxruntime`, `tensorrt` or `python`.
        file: The model's file in the version's folder.
        inputs: Its inputs.
        outputs: Its outputs.
        kind: Where its instances run.
        profiles: Indices of a plan's optimisation profiles.
        files_by_capability: Files for other GPUs than those that `file` is for, by compute
            capability.
        parameters: Parameters of the backend.
        decoupled: Whether a request may have several responses.
    """

    name: str
    backend: Literal["onnxruntime", "tensorrt", "python"]
    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    kind: Kind = "KIND_AUTO"
    profiles: tuple[int, ...] = ()
    files_by_capability: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    decoupled: bool = False


def config_text(config: ModelConfig) -> str:
    """Returns a configuration in protobuf's text format."""
    return "".join(f"{line}\n" for line in _lines(_fields(config)))


def _fields(config: ModelConfig) -> Iterator[Field]:
    """Yields the fields of a `ModelConfig` message."""
    yield "name", _quoted(config.name)
    yield "backend", _quoted(config.backend)
    yield "default_model_filename", _quoted(config.file)
    yield "max_batch_size", "0"
    for name, tensors in (("input", config.inputs), ("output", config.outputs)):
        for tensor in tensors:
            yield name, list(_tensor(tensor))
    yield "instance_group", list(_instances(config))
    for capability, file in config.files_by_capability.items():
        yield "cc_model_filenames", _entry(capability, _quoted(file))
    for key, value in config.parameters.items():
        yield "parameters", _entry(key, [("string_value", _quoted(value))])
    if config.decoupled:
        yield "model_transaction_policy", [("decoupled", "true")]


def _tensor(tensor: Tensor) -> Iterator[Field]:
    """Yields the fields of a `ModelInput` or `ModelOutput` message."""
    yield "name", _quoted(tensor.name)
    yield "data_type", tensor.data_type
    yield "dims", f"[ {', '.join(map(str, tensor.dims))} ]"
    if tensor.optional:
        yield "optional", "true"


def _instances(config: ModelConfig) -> Iterator[Field]:
    """Yields the fields of a `ModelInstanceGroup` message."""
    yield "kind", config.kind
    yield "count", "1"
    for profile in config.profiles:
        yield "profile", _quoted(str(profile))


def _entry(key: str, value: str | list[Field]) -> list[Field]:
    """Returns an entry of a map."""
    return [("key", _quoted(key)), ("value", value)]


def _quoted(text: str) -> str:
    """Returns a string in quotes; protobuf's escapes are also JSON's."""
    return json.dumps(text)


def _lines(fields: Iterable[Field], indent: str = "") -> Iterator[str]:
    """Yields the lines of a message."""
    for name, value in fields:
        if isinstance(value, str):
            yield f"{indent}{name}: {value}"
        else:
            yield f"{indent}{name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
