"""The tensors of a safetensors file by name, as bytes that stay in the file until they are read.

The format: https://huggingface.co/docs/safetensors. NumPy has no bfloat16, and a refit needs none:
an engine knows the types of its own weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import IntegrityError

LENGTH = 8  # bytes of the header's own length, little-endian


def read_tensors(path: Path) -> Mapping[str, NDArray[np.uint8]]:
    """Each tensor's bytes, memory-mapped; raises `IntegrityError` for a file that is none."""
    try:
        data = np.memmap(path, np.uint8, mode="r")
        start = LENGTH + int.from_bytes(data[:LENGTH].tobytes(), "little")
        header = json.loads(data[LENGTH:start].tobytes())
        header.pop("__metadata__", None)
        return {name: _bytes(data[start:], entry) for name, entry in header.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise IntegrityError(path, got=got, expected="a safetensors file") from error


def _bytes(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"bytes {begin} to {end} of {len(data)}")
    return data[begin:end]
