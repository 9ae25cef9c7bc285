"""What the OpenAPI document says of bodies and replies that FastAPI does not see itself."""

from __future__ import annotations

from typing import Any

from eri_runtime.serve.http.errors import ERRORS
from eri_runtime.serve.http.openai_fields import EditFields

_TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
_ERROR_CONTENT = {"application/json": {"schema": _ERROR}}
OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**described, "content": _ERROR_CONTENT} for status, described in ERRORS.items()
}

_PICTURE = {
    "type": "object",
    "properties": {"b64_json": {"type": "string"}, "url": {"type": "string", "format": "uri"}},
}
_REPLY = {
    "type": "object",
    "required": ["created", "data"],
    "properties": {
        "created": {"type": "integer"},
        "data": {"type": "array", "items": _PICTURE},
        "background": {"const": "opaque"},
        "output_format": {"enum": ["png", "jpeg", "webp"]},
        "quality": {"type": "string"},
        "size": {"type": "string"},
        "usage": {"type": "object"},
    },
}
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Pictures, or a stream of events.",
        "content": {
            "application/json": {"schema": _REPLY},
            "text/event-stream": {"schema": _EVENT},
        },
    }
}


def _edit_schema() -> dict[str, Any]:
    """Returns the schema of an edit's form: its fields and its files."""
    schema = EditFields.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": file, "mask": file}
    schema["required"] = [*schema["required"], "image"]
    return schema


_FILE = {"contentType": "image/png, image/jpeg, image/webp"}
_FORM = {"schema": _edit_schema(), "encoding": {"image": _FILE, "mask": _FILE}}
EDIT_BODY = {"required": True, "content": {"multipart/form-data": _FORM}}
