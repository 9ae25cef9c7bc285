"""Arrays as OpenVINO's tensors, and back."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from eri_runtime.executors.base import Arrays
from eri_runtime.executors.openvino.library import import_openvino


class OpenVinoTensors:
    """Converts what goes into a request, and copies what comes out."""

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """Returns an array as a tensor, which shares its memory if OpenVINO can."""
        return import_openvino().Tensor(array, shared_memory=_is_shareable(array))

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """Returns a tensor as an array that owns its memory."""
        array: NDArray[Any] = tensor.data.copy()
        return array

    def copied(self, tensor: Any) -> Any:
        """Copies a request's own tensor, which the next call overwrites and which keeps it open."""
        copy = import_openvino().Tensor(tensor.element_type, tensor.shape)
        tensor.copy_to(copy)
        return copy


def _is_shareable(array: NDArray[Any]) -> bool:
    """Returns whether OpenVINO can use an array's memory: contiguous, and not read-only."""
    return array.flags.c_contiguous and array.flags.writeable


class Request(OpenVinoTensors):
    """A request of a compiled model, which is told only of inputs that are other arrays.

    It reads the arrays' own memory, so what is written into one counts in the next call.
    OpenVINO's own call wraps every input each time, and copies every output: 30 µs of a step.
    """

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._set: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {}

    def infer(self, inputs: Arrays) -> None:
        """Runs the model on an array for each input."""
        for name, array in inputs.items():
            before, shape = self._set.get(name, (None, ()))
            if before is not array or shape != array.shape:
                self._request.set_tensor(name, self.to_tensor(array))
                self._set.pop(name, None)
                if _is_shareable(array):  # others are copied
                    self._set[name] = array, array.shape
        self._request.infer(None, share_outputs=True)

    def output(self, name: str) -> NDArray[Any]:
        """Returns an output's memory, which the next call overwrites."""
        array: NDArray[Any] = self._request.get_tensor(name).data
        return array
