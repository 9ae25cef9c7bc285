"""Arrays as OpenVINO's tensors, and back."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from eri_runtime.executors.openvino.library import import_openvino


class OpenVinoTensors:
    """Converts what goes into a request, and copies what comes out."""

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """Returns an array as a tensor, which shares its memory if it is contiguous."""
        return import_openvino().Tensor(array, shared_memory=array.flags.c_contiguous)

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """Returns a tensor as an array that owns its memory."""
        array: NDArray[Any] = tensor.data.copy()
        return array

    def copied(self, tensor: Any) -> Any:
        """Copies a request's own tensor, which the next call overwrites and which keeps it open."""
        copy = import_openvino().Tensor(tensor.element_type, tensor.shape)
        tensor.copy_to(copy)
        return copy
