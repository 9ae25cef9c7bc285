"""A stand-in for `triton_python_backend_utils`, the module that Triton's Python backend provides.

It has the names that the backend's README documents, and holds tensors as the backend does: a text
is bytes in an array of objects. A model is imported from its repository and gets the arguments that
the backend gives.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from google.protobuf import json_format

from tests.support import triton_schema

FINAL = 1
CODES = ("INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED")
DTYPES = {
    "TYPE_STRING": np.object_,
    "TYPE_UINT8": np.uint8,
    "TYPE_INT32": np.int32,
    "TYPE_UINT64": np.uint64,
    "TYPE_FP64": np.float64,
}


class Tensor:
    """An input or output: a name and an array."""

    def __init__(self, name, array):
        assert isinstance(array, np.ndarray)
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    """An error as a response carries it."""

    def __init__(self, message, code="INTERNAL"):
        self.text, self.code = message, code

    def message(self):
        return self.text

    def __repr__(self):
        return f"{self.code}: {self.text}"


for _code in CODES:
    setattr(TritonError, _code, _code)


class Response:
    """A response: outputs or an error."""

    def __init__(self, output_tensors=(), error=None):
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Request:
    """A request with inputs; `lives` is how often it says that it is not cancelled."""

    def __init__(self, lives=1000, **inputs):
        self.inputs = {name: Tensor(name, np.asarray(value)) for name, value in inputs.items()}
        self.lives, self.sent, self.finished = lives, [], False

    def is_cancelled(self):
        self.lives -= 1
        return self.lives < 0

    def get_response_sender(self):
        return self

    def send(self, response=None, flags=0):
        assert not self.finished
        if response is not None:
            self.sent.append(response)
        self.finished = flags == FINAL


def text(*values: str | bytes) -> np.ndarray:
    """A tensor of texts."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return np.array(raw, np.object_)


@contextmanager
def served(repository: Path, name: str = "eri") -> Iterator[SimpleNamespace]:
    """A repository's Python model, opened as the backend opens it, and its configuration."""
    config = triton_schema.parse((repository / name / "config.pbtxt").read_text())
    folder = repository / name / "1"
    stand_in = ModuleType("triton_python_backend_utils")
    vars(stand_in).update(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=Response,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
        path = folder / config.default_model_filename
        spec = importlib.util.spec_from_file_location("served_model", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize(arguments(repository / name, config))
        try:
            yield SimpleNamespace(execute=model.execute, config=config)
        finally:
            model.finalize()


def arguments(folder: Path, config) -> dict[str, str]:
    """What the backend gives a model: all of it text."""
    words = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(words),
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": config.name,
    }
