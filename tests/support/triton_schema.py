"""Reads `config.pbtxt` as Triton does: by protobuf's parser, over the fields of Triton's schema.

The numbers, names and types of fields are facts of protobuf/model_config.proto in
triton-inference-server/common, for the messages that we write. Messages that we never write, such
as `ModelWarmup`, are left out. An unknown field, type or enumerator is an error.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

PACKAGE = "inference"
Proto = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "string": Proto.TYPE_STRING,
    "int32": Proto.TYPE_INT32,
    "int64": Proto.TYPE_INT64,
    "bool": Proto.TYPE_BOOL,
}
DATA_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)
ENUMS = {
    "DataType": [f"TYPE_{name}" for name in DATA_TYPES],
    "ModelInstanceGroup.Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}
# `*` marks a repeated field; a map is a repeated entry with a key and a value
MESSAGES = {
    "ModelTensorReshape": {"shape": (1, "int64*")},
    "ModelInput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "int64*"),
        "reshape": (5, "ModelTensorReshape"),
        "is_shape_tensor": (6, "bool"),
        "allow_ragged_batch": (7, "bool"),
        "optional": (8, "bool"),
        "is_non_linear_format_io": (9, "bool"),
    },
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "label_filename": (4, "string"),
        "reshape": (5, "ModelTensorReshape"),
        "is_shape_tensor": (6, "bool"),
        "is_non_linear_format_io": (7, "bool"),
    },
    "ModelInstanceGroup": {
        "name": (1, "string"),
        "count": (2, "int32"),
        "gpus": (3, "int32*"),
        "kind": (4, "ModelInstanceGroup.Kind"),
        "profile": (5, "string*"),
        "passive": (7, "bool"),
        "host_policy": (9, "string"),
    },
    "ModelTransactionPolicy": {"decoupled": (1, "bool")},
    "ModelParameter": {"string_value": (1, "string")},
    "ModelConfig.CcModelFilenamesEntry": {"key": (1, "string"), "value": (2, "string")},
    "ModelConfig.ParametersEntry": {"key": (1, "string"), "value": (2, "ModelParameter")},
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "default_model_filename": (8, "string"),
        "cc_model_filenames": (9, "ModelConfig.CcModelFilenamesEntry*"),
        "parameters": (14, "ModelConfig.ParametersEntry*"),
        "backend": (17, "string"),
        "model_transaction_policy": (19, "ModelTransactionPolicy"),
        "runtime": (25, "string"),
    },
}


def parse(text: str) -> Any:
    """The `ModelConfig` message that a text describes; raises `text_format.ParseError`."""
    return text_format.Parse(text, message_class()())


@cache
def message_class() -> type:
    """The class of `ModelConfig`."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(schema().SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ModelConfig"))


def schema() -> descriptor_pb2.FileDescriptorProto:
    """The schema as protobuf describes one."""
    file = descriptor_pb2.FileDescriptorProto(
        name="triton_model_config.proto", package=PACKAGE, syntax="proto3"
    )
    messages = {}
    for path, fields in [*MESSAGES.items()][::-1]:  # an outer message before those within it
        outer, dot, name = path.rpartition(".")
        message = (messages[outer].nested_type if dot else file.message_type).add(name=name or path)
        message.options.map_entry = name.endswith("Entry")
        messages[path] = message
        for field, (number, kind) in fields.items():
            message.field.append(_field(field, number, kind))
    for path, values in ENUMS.items():
        outer, _, name = path.rpartition(".")
        enum = (messages[outer] if outer else file).enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    return file


def _field(name: str, number: int, kind: str) -> Proto:
    """A field of a message."""
    one = kind.removesuffix("*")
    field = Proto(name=name, number=number)
    field.label = Proto.LABEL_OPTIONAL if one == kind else Proto.LABEL_REPEATED
    if one in TYPES:
        field.type = TYPES[one]
    else:
        field.type = Proto.TYPE_ENUM if one in ENUMS else Proto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{one}"
    return field
