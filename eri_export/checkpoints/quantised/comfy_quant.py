"""Quantised layers as ComfyUI saves them: the weight, its scales, and what they are.

Until 2025 a file had a marker `scaled_fp8`, and a layer `weight`, `scale_weight` and perhaps
`scale_input`. Now a layer has `weight` and `weight_scale`, and its format is in a tensor of JSON,
`comfy_quant`, or in the file's metadata. The formulas are those of comfy-kitchen's eager backend:
https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md

Scales of a layer's input matter for products in 8 bits only, so they are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eri_export.checkpoints.quantised.decoded_tensor import (
    REAL,
    check_type,
    damaged,
    read_bytes,
)
from eri_export.checkpoints.quantised.gguf_file import is_gguf
from eri_export.checkpoints.quantised.scaled_blocks import mxfp8, nvfp4
from eri_export.checkpoints.quantised.scaled_rows import scaled_rows
from eri_export.checkpoints.stored_tensors import StoredTensor
from eri_runtime.bundle import read_header
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short
from eri_runtime.files import parse_json

Layer = Mapping[str, StoredTensor]  # the tensors of a layer by the last word of their names

MARKER = "scaled_fp8"
DESCRIPTION, METADATA = "comfy_quant", "_quantization_metadata"
SCALES = ("weight_scale", "scale_weight")
INPUT_SCALES = ("input_scale", "scale_input")
WORDS = frozenset({DESCRIPTION, *SCALES, *INPUT_SCALES, "weight_scale_2", "pre_quant_scale"})

FP8 = ("float8_e4m3fn", "float8_e5m2")
READ = (*FP8, "mxfp8", "nvfp4", "int8_tensorwise")
GROUP = 256  # columns that ConvRot rotates together, if a layer does not say
MOST_JSON = 4096  # bytes of a layer's description; they have under 200
WAY_OUT = "export the 16-bit, fp8 or GGUF file of this model"


def dequantised(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors of files in which each quantised layer is its weight alone.

    Raises `CheckpointError` for a format that is not read, `DamagedWeightsError` for scales or
    descriptions that do not fit their weight.
    """
    layers: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    markers: list[StoredTensor] = []
    for name, tensor in tensors.items():
        layer, _, word = name.rpartition(".")
        if word in WORDS:
            layers.setdefault(layer, {})[word] = tensor
        elif word == MARKER:
            markers.append(tensor)
        else:
            rest[name] = tensor
    for marker in markers:
        _check_scales(marker, layers)
    metadata = _metadata(tensors)
    layers |= {layer: {} for layer in metadata.keys() - layers if f"{layer}.weight" in rest}
    for layer, own in layers.items():
        weight = rest.get(f"{layer}.weight")
        if weight is None:
            raise damaged(next(iter(own.values())), "no weight beside it", f"{layer}.weight")
        description = _description(own, metadata.pop(layer, None))
        rest[weight.name] = _weight(weight, own, description)
    for layer in metadata:
        if f"{layer}.weight" not in rest:
            offender = f"{next(iter(tensors.values())).file}: {short(layer)}"
            raise DamagedWeightsError(offender, got="a format alone", expected="its weight")
    return rest


def _check_scales(marker: StoredTensor, layers: Mapping[str, Layer]) -> None:
    """Raises `DamagedWeightsError` for a network marked as scaled in which no layer has a scale."""
    prefix = marker.name.removesuffix(MARKER)
    scaled = (layer for layer, own in layers.items() if own.keys() & set(SCALES))
    if not any(layer.startswith(prefix) for layer in scaled):
        raise damaged(marker, "no scales", f"a {SCALES[1]} beside weights")


def _weight(
    weight: StoredTensor, own: Layer, description: Mapping[str, Any] | None
) -> StoredTensor:
    """Returns a layer's weight as it reads with its scales."""
    scale = next((own[word] for word in SCALES if word in own), None)
    if description is None and scale is None:
        return weight
    form = _format(weight, description)
    if "pre_quant_scale" in own:
        got = f"{form} with a scale for each input, which is AWQ"
        raise _refused(own["pre_quant_scale"], got)
    if scale is None:
        raise damaged(weight, f"{form} alone", f"a {SCALES[0]} beside it")
    if form == "nvfp4":
        if "weight_scale_2" not in own:
            raise damaged(weight, f"{form} without weight_scale_2", "both scales")
        return nvfp4(weight, scale, own["weight_scale_2"])
    if form == "mxfp8":
        return mxfp8(weight, scale)
    if form == "int8_tensorwise":
        check_type(weight, "I8")
        return scaled_rows(weight, scale, form, rotation=_rotation(weight, description or {}))
    check_type(weight, *REAL)
    return scaled_rows(weight, scale, f"scaled {weight.dtype}")


def _format(weight: StoredTensor, description: Mapping[str, Any] | None) -> str:
    """Returns the format of a layer; raises `CheckpointError` for one that is not read."""
    if description is None:
        if weight.dtype in REAL:
            return FP8[0]
        raise _refused(weight, f"type {weight.dtype} with a scale and no {DESCRIPTION}")
    form = description.get("format")
    if form not in READ:
        raise _refused(weight, f"the format {short(form)}")
    return str(form)


def _rotation(weight: StoredTensor, description: Mapping[str, Any]) -> int:
    """Returns the size of the groups of columns that are rotated, 0 for none."""
    inner = description.get("params")
    options = {**(inner if isinstance(inner, dict) else {}), **description}
    if not options.get("convrot", False):
        return 0
    size = options.get("convrot_groupsize", GROUP)
    if type(size) is not int or size < 1:
        raise damaged(weight, f"convrot_groupsize {short(size)}", "a number of columns")
    return size


def _description(own: Layer, from_metadata: Any) -> Mapping[str, Any] | None:
    """Returns what a layer's own tensor, else the metadata, says of its format."""
    tensor = own.get(DESCRIPTION)
    if tensor is None:
        return None if from_metadata is None else _object(from_metadata)
    if tensor.nbytes > MOST_JSON:
        raise damaged(tensor, f"{tensor.nbytes} bytes", f"JSON of at most {MOST_JSON}")
    try:
        value = parse_json(bytes(read_bytes(tensor).tolist()))
    except ValueError as error:
        raise damaged(tensor, "no JSON", "a layer's format in JSON") from error
    if not isinstance(value, dict):
        raise damaged(tensor, short(value), "a layer's format in JSON")
    return value


def _metadata(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Returns the layers that the metadata of the files describes.

    Some files leave out the prefix that the tensors have; such layers are found by their end.
    """
    layers: dict[str, Any] = {}
    for file in sorted({tensor.file for tensor in tensors.values()}):
        if not is_gguf(file):
            layers |= _layers(file, read_header(file).metadata.get(METADATA))
    names = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    bare = layers.keys() - names
    prefixed = {end: name for name in sorted(names) for end in _ends(name) if end in bare}
    return {prefixed.get(layer, layer): value for layer, value in layers.items()}


def _ends(name: str) -> Iterable[str]:
    """Yields a name without its first word, without its first two, and so on."""
    words = name.split(".")
    return (".".join(words[start:]) for start in range(1, len(words)))


def _layers(file: Path, text: str | None) -> dict[str, Any]:
    """Returns the layers in a file's metadata; raises `DamagedWeightsError` if it is malformed."""
    if text is None:
        return {}
    try:
        layers = parse_json(text)["layers"]
    except (ValueError, TypeError, KeyError):
        layers = None
    if not isinstance(layers, dict) or not all(isinstance(x, dict | str) for x in layers.values()):
        offender, expected = f"{file}: {METADATA}", "a format for each of its layers, in JSON"
        raise DamagedWeightsError(offender, got=short(text), expected=expected)
    return layers


def _object(value: Any) -> Mapping[str, Any]:
    """Returns a layer's description; some writers give the format's name alone."""
    return {"format": value} if isinstance(value, str) else dict(value)


def _refused(tensor: StoredTensor, got: str) -> CheckpointError:
    offender = f"{tensor.file}: {short(tensor.name)}"
    return CheckpointError(offender, got=got, expected=f"one of {', '.join(READ)}", fix=WAY_OUT)
