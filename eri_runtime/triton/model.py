"""The pipeline as a model of Triton's Python backend: `eri export-triton` copies this file.

The backend imports it, makes one `TritonPythonModel` an instance and calls its methods.
https://github.com/triton-inference-server/python_backend#usage
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

import eri_runtime as eri
from eri_runtime.triton.drawing import draw, error_code, error_text
from eri_runtime.triton.tensors import Array, parameter

BUNDLE = "bundle"  # its folder, beside this file


class TritonPythonModel:
    """Generates images, one request at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the bundle; components open at the first request.

        Args:
            args: Where the model is, and its configuration in JSON.

        Raises:
            BundleError: If a file of the bundle is missing or damaged.
            BackendError: If its engine is not installed or cannot run it.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"], args["model_version"], BUNDLE)
        self._pipe = eri.load(folder, parameter(config, "backend"))
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._outputs = [each["name"] for each in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers requests; an error is the answer to its own request only.

        Returns:
            One response for each request; None if the model streams, as they were sent already.
        """
        if not self._decoupled:
            return [self._last(request) for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            for response in self._responses(request, sender.is_cancelled):
                sender.send(response)
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def finalize(self) -> None:
        """Closes the bundle."""
        self._pipe.close()

    def _last(self, request: Any) -> Any:
        """Returns the last response to a request."""
        *_, last = self._responses(request, request.is_cancelled)
        return last

    def _responses(self, request: Any, cancelled: Any) -> Iterator[Any]:
        """Yields the responses to a request: previews and images, or an error."""

        def read(name: str) -> Array | None:
            tensor = pb.get_input_tensor_by_name(request, name)
            return None if tensor is None else tensor.as_numpy()

        try:
            with closing(draw(self._pipe, read, cancelled)) as answers:
                for each in answers:
                    tensors = [pb.Tensor(name, each[name]) for name in self._outputs]
                    yield pb.InferenceResponse(output_tensors=tensors)
        except Exception as error:  # whatever it is, the client gets an answer
            code = getattr(pb.TritonError, error_code(error))
            yield pb.InferenceResponse(error=pb.TritonError(error_text(error), code))
