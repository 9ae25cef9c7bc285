"""LoRAs in 8 bits: the merged weights are those of the numbers that torch reads, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.errors import EriError, LoraError, NonFiniteError, UnmatchedKeysError
from eri_runtime.weights.lora import adapters, apply_lora_for_inference
from tests.support.loras import KOHYA, as_numpy, as_torch, base_weights, kohya, low_rank, ours

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_" + NAME.replace(".", "_")
FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.fixture(scope="module")
def plain(sdxl_checkpoint):
    shape = base_weights(sdxl_checkpoint)["denoiser"][f"{NAME}.weight"].shape
    return as_torch(low_rank({NAME: shape}, kohya("lora_unet_"), KOHYA, alpha=2))


def quantised(lora, dtype, scale_name, *, rows=False):
    """A file in 8 bits, and the numbers that it stands for, as float32."""
    file, values = {}, {}
    for key, value in lora.items():
        layer, _, word = key.rpartition(".")
        if word != "weight":
            file[key] = values[key] = value
            continue
        largest = value.abs().amax(1) if rows else value.abs().amax()
        scale = largest / (127 if dtype is torch.int8 else torch.finfo(dtype).max)
        column = scale[:, None] if rows else scale
        q = value / column
        file[key] = (q.round() if dtype is torch.int8 else q).to(dtype)
        file[f"{layer}.{scale_name}"] = scale
        values[key] = file[key].to(torch.float32) * column
    return file, values


def saved(path, tensors, metadata=None):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return read_tensors(path)


def assert_merged_alike(checkpoint, file, values):
    found, expected = (ours(checkpoint, "sdxl", each)["denoiser"] for each in (file, values))
    weight = f"{NAME}.weight"
    base = base_weights(checkpoint)["denoiser"]
    assert not np.array_equal(expected[weight], base[weight])
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    merged = apply_lora_for_inference(base, file)
    assert np.array_equal(merged[weight], expected[weight])


@pytest.mark.parametrize("dtype", FP8)
def test_plain_fp8(sdxl_checkpoint, plain, tmp_path, dtype):
    file = {key: value.to(FP8[dtype]) for key, value in plain.items()}
    values = as_numpy((key, value.to(torch.float32)) for key, value in file.items())
    assert_merged_alike(sdxl_checkpoint, saved(tmp_path / "a.safetensors", file), values)


SCALED = {
    "old": ("e4m3", "scale_weight", False),
    "old e5m2": ("e5m2", "scale_weight", False),
    "new": ("e4m3", "weight_scale", False),
    "new by row": ("e4m3", "weight_scale", True),
    "int8": ("int8", "scale_weight", False),
    "int8 by row": ("int8", "weight_scale", True),
}


@pytest.mark.parametrize("case", SCALED)
def test_scaled(sdxl_checkpoint, plain, tmp_path, case):
    kind, scale_name, rows = SCALED[case]
    dtype = FP8.get(kind, torch.int8)
    file, values = quantised(plain, dtype, scale_name, rows=rows)
    metadata = None
    layers = [key.removesuffix(".weight") for key in plain if key.endswith(".weight")]
    form = {"format": {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}.get(kind, "int8_tensorwise")}
    if case == "old":
        file["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
        file[f"{layers[0]}.scale_input"] = torch.tensor(0.5)
    elif case == "new":
        text = json.dumps(form).encode()
        file |= {f"{layer}.comfy_quant": torch.tensor([*text]).byte() for layer in layers}
    elif case == "new by row":
        described = {"format_version": "1.0", "layers": dict.fromkeys(layers, form)}
        metadata = {"_quantization_metadata": json.dumps(described)}
    read = saved(tmp_path / "a.safetensors", file, metadata)
    assert_merged_alike(sdxl_checkpoint, read, as_numpy(values.items()))


DOWN = f"{KEY}.lora_down"


class File(dict):
    """Tensors with metadata, as a file has."""

    def __init__(self, tensors, **metadata):
        super().__init__(tensors)
        self.metadata = metadata


def described(**settings):
    return np.frombuffer(json.dumps(settings).encode(), np.uint8)


SPOILED = {
    "another format": (
        {f"{DOWN}.comfy_quant": described(format="nvfp4")},
        LoraError,
        r"lora_down.*'nvfp4'.*float8_e4m3fn.*16-bit",
    ),
    "rotated": (
        {f"{DOWN}.comfy_quant": described(format="int8_tensorwise", convrot=True)},
        LoraError,
        "rotated columns",
    ),
    "no json": ({f"{DOWN}.comfy_quant": np.ones(3, np.uint8)}, LoraError, "a format, in JSON"),
    "many scales": ({f"{DOWN}.scale_weight": np.ones(2, np.float32)}, LoraError, "or 3 rows"),
    "no number": ({f"{DOWN}.scale_weight": np.array(np.nan)}, NonFiniteError, "scale_weight"),
    "a text": ({f"{DOWN}.scale_weight": "much"}, LoraError, "scale_weight.*array of float16"),
    "scales of columns": (
        {f"{DOWN}.scale_weight": np.ones((1, 3), np.float32)},
        LoraError,
        r"shape \[1, 3\], expected one number, or 3 rows",
    ),
    "a large scale": ({f"{DOWN}.scale_weight": np.array(1e300)}, NonFiniteError, "scale_weight"),
    "no bytes": ({f"{DOWN}.comfy_quant": np.array([np.nan])}, LoraError, "a format, in JSON"),
    "a scale of nothing": (
        {f"{KEY}.nowhere.scale_weight": np.array(1.0)},
        UnmatchedKeysError,
        "nowhere.scale_weight",
    ),
    "no scale": ({f"{DOWN}.scale_weight": None}, LoraError, "lora_down.*int8 numbers"),
    "16 bits": (
        {f"{DOWN}.weight": np.ones((3, 64), np.float16)},
        LoraError,
        "float16, expected numbers in 8 bits",
    ),
}


@pytest.fixture(scope="module")
def scaled(plain):
    return as_numpy(quantised(plain, torch.int8, "scale_weight")[0].items())


def refusal(lora, sdxl_checkpoint):
    base = base_weights(sdxl_checkpoint)["denoiser"]
    with pytest.raises(EriError) as caught:
        adapters(lora, "sdxl", {"denoiser": {name: base[name].shape for name in base}})
    return caught.value


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_read(sdxl_checkpoint, scaled, case):
    changes, error, words = SPOILED[case]
    lora = {key: value for key, value in (scaled | changes).items() if value is not None}
    refused = refusal(lora, sdxl_checkpoint)
    assert type(refused) is error
    with pytest.raises(error, match=words):
        raise refused


def test_a_marker_without_scales_is_no_scaled_lora(sdxl_checkpoint, plain):
    lora = as_numpy(plain.items()) | {"scaled_fp8": np.zeros(2, np.float32)}
    assert "scaled_fp8" in str(refusal(lora, sdxl_checkpoint))


@pytest.mark.parametrize("text", ["", "[]", '{"layers": 3}', "[" * 99999])
def test_metadata_that_is_no_description(sdxl_checkpoint, scaled, text):
    refused = refusal(File(scaled, _quantization_metadata=text), sdxl_checkpoint)
    assert type(refused) is LoraError
    assert "_quantization_metadata" in str(refused)


def test_metadata_with_another_format(sdxl_checkpoint, scaled):
    text = json.dumps({"layers": {DOWN: {"format": "int8_tensorwise", "convrot": True}}})
    refused = refusal(File(scaled, _quantization_metadata=text), sdxl_checkpoint)
    assert "rotated columns" in str(refused)
