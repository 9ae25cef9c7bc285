"""Writes the header of a safetensors file.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch

from eri_export.checkpoints.stored_tensors import SAFETENSORS_DTYPES

Entry = tuple[str, torch.dtype, Sequence[int], int]  # name, type, shape, bytes


def safetensors_header(entries: Iterable[Entry], alignment: int = 8) -> bytes:
    """Returns the length and the JSON of a header, padded with spaces so that data is aligned.

    Args:
        entries: The tensors, in the order of their data.
        alignment: What the offset of the data is a multiple of, in bytes.
    """
    header, position = {}, 0
    for name, dtype, shape, nbytes in entries:
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text
