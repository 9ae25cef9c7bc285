"""Factors in 8 bits with a scale: W = q · scale, in fp8 or int8, one scale a tensor or a row.

ComfyUI wrote `X.scale_weight` beside `X.weight` until 2025, with a marker `scaled_fp8`. Now it
writes `X.weight_scale`, and says the format in `X.comfy_quant` or in the file's metadata:
https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import LoraError, short
from eri_runtime.files import parse_json
from eri_runtime.weights.lora.factors import FLOATS, FP8, finite_float32
from eri_runtime.weights.lora.selected import SelectedTensors

EIGHT_BITS = (*FP8, np.dtype(np.int8))
SCALES = ("scale_weight", "weight_scale")
DESCRIPTION, METADATA = "comfy_quant", "_quantization_metadata"
UNUSED = ("scale_input", "input_scale", DESCRIPTION)  # input scales matter for 8-bit products only
MARKER = "scaled_fp8"
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
WAY_OUT = "use the 16-bit file of this LoRA"


class UnscaledTensors(SelectedTensors):
    """The tensors of a LoRA with every scale multiplied into its factor, as float32.

    Args:
        tensors: The tensors of a file.
        keys: Those of the LoRA itself.
        scales: The key of the scale of each scaled factor, by the factor's key.
    """

    def __init__(
        self, tensors: Mapping[str, Any], keys: Iterable[str], scales: Mapping[str, str]
    ) -> None:
        super().__init__(tensors, keys)
        self._scales = scales

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in self._scales:
            return value
        return _product(key, value, self._scales[key], self._tensors)


def without_scales(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the tensors of a LoRA with scales multiplied in, or `tensors` itself without scales.

    Raises `LoraError` for a format that is not read. A scale is checked when its factor is read:
    `LoraError` if it does not fit, `NonFiniteError` if it is NaN or Inf.
    """
    layers = {key.removesuffix(".weight"): key for key in tensors if key.endswith(".weight")}
    _check_formats(tensors, layers)
    scales = {
        layers[layer]: f"{layer}.{word}"
        for layer in layers
        for word in SCALES
        if f"{layer}.{word}" in tensors
    }
    if not scales:
        return tensors
    unused = (f"{key.removesuffix('.weight')}.{word}" for key in scales for word in UNUSED)
    marker = (key for key in tensors if key.rpartition(".")[2] == MARKER)
    left_out = {*scales.values(), *marker, *unused}
    return UnscaledTensors(tensors, (key for key in tensors if key not in left_out), scales)


def _product(key: str, value: Any, scale_key: str, tensors: Mapping[str, Any]) -> Any:
    """Returns q · scale in float32; the caller checks a value that is not in 8 bits."""
    if not isinstance(value, np.ndarray) or value.dtype not in EIGHT_BITS:
        got = getattr(value, "dtype", type(value).__name__)
        expected = f"numbers in 8 bits, as {short(scale_key)} scales them"
        raise LoraError(short(key), got=got, expected=expected, fix=WAY_OUT)
    scale = _scale(scale_key, tensors[scale_key], len(value) if value.ndim else 1)
    with np.errstate(over="ignore"):  # the reader of the factor refuses Inf, with its name
        return value.astype(np.float32) * scale.reshape(-1, *(1,) * (value.ndim - 1))


def _scale(key: str, value: Any, rows: int) -> NDArray[np.float32]:
    """Returns a scale as float32: one number, or one a row."""
    scale = finite_float32(key, value, FLOATS)
    if scale.size != 1 and not len(scale) == scale.size == rows:
        shape = list(scale.shape)
        raise LoraError(short(key), got=f"shape {shape}", expected=f"one number, or {rows} rows")
    return scale.reshape(-1)


def _check_formats(tensors: Mapping[str, Any], layers: Mapping[str, str]) -> None:
    """Raises `LoraError` for a layer of a format that is not read."""
    described = _described(tensors)
    for layer in layers:
        key = f"{layer}.{DESCRIPTION}"
        if key in tensors:
            described[layer] = _parsed(key, tensors[key])
    for layer, settings in described.items():
        form = settings.get("format") if isinstance(settings, Mapping) else settings
        turned = isinstance(settings, Mapping) and settings.get("convrot")
        if form not in FORMATS or turned:
            got = f"{short(form)} with rotated columns" if turned else short(form)
            expected = f"one of {', '.join(FORMATS)}"
            raise LoraError(f"{short(layer)}: format", got=got, expected=expected, fix=WAY_OUT)


def _described(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the descriptions of layers in the file's metadata."""
    text = getattr(tensors, "metadata", {}).get(METADATA)
    if text is None:
        return {}
    try:
        layers = parse_json(text)["layers"]
        return dict(layers)
    except (ValueError, TypeError, KeyError) as error:
        raise LoraError(METADATA, got=short(text), expected="layers by name, in JSON") from error


def _parsed(key: str, value: Any) -> Any:
    """Returns the JSON that a tensor of bytes holds."""
    try:
        return parse_json(np.asarray(value).astype(np.uint8, casting="safe").tobytes())
    except (ValueError, TypeError, OverflowError) as error:
        raise LoraError(short(key), got=short(value), expected="a format, in JSON") from error
