"""Quantised weights, dequantised tensor by tensor while they are read.

`read_file` opens a safetensors or GGUF file; `dequantised` turns quantised layers, several
tensors each, into one tensor that reads as float32. One module a format: `comfy_quant` finds the
layers that ComfyUI writes (`scaled_rows` and `scaled_blocks` have their formulas),
`bitsandbytes_state` those of bitsandbytes, `gguf_file` reads GGUF. Start with `decoded_tensor`: how
rows become numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eri_export.checkpoints.quantised import bitsandbytes_state, comfy_quant
from eri_export.checkpoints.quantised.decoded_tensor import DecodedTensor
from eri_export.checkpoints.quantised.gguf_file import is_gguf, read_gguf
from eri_export.checkpoints.stored_tensors import StoredTensor, read_headers
from eri_runtime.errors import CheckpointError, short

__all__ = ["DecodedTensor", "check_method", "dequantised", "read_file"]

METHOD = "quantization_config"
BITSANDBYTES = "bitsandbytes"


def read_file(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors or GGUF file as they are stored.

    Raises the errors of `read_headers` and of `gguf_file.read_gguf`.
    """
    return read_gguf(file) if is_gguf(file) else read_headers([file])


def dequantised(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors with every quantised layer as one weight that reads as float32.

    Raises `CheckpointError` for a format that is not read and `DamagedWeightsError` for scales that
    do not fit their weight.
    """
    return comfy_quant.dequantised(bitsandbytes_state.dequantised(tensors))


def check_method(file: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` for a config that names a method that is not read.

    Its `quantization_config` says how a component's folder was quantised.
    """
    settings = config.get(METHOD)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    if method != BITSANDBYTES:
        raise CheckpointError(
            f"{file}: {METHOD}",
            got=f"weights quantised by {short(method)}",
            expected=f"{BITSANDBYTES}, or no quantisation",
            fix=comfy_quant.WAY_OUT,
        )
