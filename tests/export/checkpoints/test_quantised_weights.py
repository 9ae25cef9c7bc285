"""Quantised weights read as their format's formula says, to the bit, whole and in parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eri_export.checkpoints import stored_tensors
from eri_export.checkpoints.config_from_shapes.shapes import select_part
from eri_export.checkpoints.quantised import dequantised, read_file
from eri_export.weights.weights_file import Conversion
from eri_runtime.weights import Form, Rows
from tests.support import quantised as made

gguf = pytest.importorskip("gguf")

ROWS, COLUMNS = 192, 256  # more than a tile of 128 rows of scales


@pytest.fixture
def weight():
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def values(tensor):
    """All values of a stored tensor, in its shape."""
    return torch.cat(list(tensor.chunks())).view(tensor.shape)


def nested(layer, weight):
    return made.nf4(layer, weight, nested=True)


def scaled_once(layer, weight):
    return made.scaled(layer, weight, "scale_weight")


def scaled_without_description(layer, weight):
    return made.scaled(layer, weight, "weight_scale")


def by_row(layer, weight):
    """fp8 with a scale a row."""
    scale = weight.abs().amax(1) / 448
    q = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    stored = {f"{layer}.weight": q, f"{layer}.weight_scale": scale}
    return stored, {f"{layer}.weight": q.float() * scale[:, None]}


def comfy(form):
    return lambda layer, weight: made.comfy({f"{layer}.weight": weight}, form)


KINDS = {
    "scale_weight": scaled_once,
    "weight_scale": scaled_without_description,
    "a scale a row": by_row,
    "nf4": made.nf4,
    "nested nf4": nested,
    "LLM.int8()": made.llm_int8,
    **{form: comfy(form) for form in made.COMFY},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [stored_tensors.CHUNK, 5000])
def test_values(tmp_path, monkeypatch, weight, kind, chunk):
    """To the bit: the same float32 operations in the same order, for any size of the chunks.

    A rotation is a product of matrices, whose sums have no order; 16 terms of rounding 6e-8 each.
    """
    monkeypatch.setattr(stored_tensors, "CHUNK", chunk)
    stored, meant = KINDS[kind]("x", weight)
    save_file(stored, tmp_path / "a.safetensors")
    tensors = dequantised(read_file(tmp_path / "a.safetensors"))
    assert set(tensors) == {"x.weight"}
    (tensor,) = tensors.values()
    assert tensor.dtype == "F32"
    if "rotated" in kind:
        torch.testing.assert_close(values(tensor), meant["x.weight"], rtol=0, atol=2e-6)
    else:
        assert torch.equal(values(tensor), meant["x.weight"])
    assert (values(tensor) - weight).abs().max() < 0.6  # 4 bits of a normal distribution
    for dtype in (torch.float16, torch.bfloat16):
        rounded = torch.cat(list(Conversion(tensor, dtype).chunks()))
        assert torch.equal(rounded, values(tensor).to(dtype).view(-1))  # rounded once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "part", [Rows(1, 3, of=3), Rows(0, 1, of=64), Form.SWAPPED, Form.TRANSPOSED], ids=str
)
def test_parts(tmp_path, monkeypatch, weight, kind, part):
    """A part of a fused matrix has its own rows' scales."""
    monkeypatch.setattr(stored_tensors, "CHUNK", 9000)
    stored, _ = KINDS[kind]("x", weight)
    save_file(stored, tmp_path / "a.safetensors")
    tensor = dequantised(read_file(tmp_path / "a.safetensors"))["x.weight"]
    monkeypatch.setattr(stored_tensors, "CHUNK", 1 << 22)
    whole = values(tensor)
    monkeypatch.setattr(stored_tensors, "CHUNK", 9000)
    expected = {
        Rows(1, 3, of=3): whole[64:],
        Rows(0, 1, of=64): whole[:3],
        Form.SWAPPED: torch.cat([whole[96:], whole[:96]]),
        Form.TRANSPOSED: whole.T,
    }[part]
    got = values(select_part(tensor, part))
    if "rotated" in kind:  # see test_values
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(3, 5), (7,), (6, 4, 3, 3)])
def test_nf4_of_shapes_that_are_no_blocks(tmp_path, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored, meant = made.nf4("x", weight)
    save_file(stored, tmp_path / "a.safetensors")
    tensor = dequantised(read_file(tmp_path / "a.safetensors"))["x.weight"]
    assert torch.equal(values(tensor), meant["x.weight"])


@pytest.mark.parametrize("name", ["x", "model.diffusion_model.x"])
@pytest.mark.parametrize("form", ["nvfp4", {"format": "nvfp4"}])
def test_formats_in_the_metadata(tmp_path, weight, name, form):
    """With the tensors' prefix or without; some writers give the format's name alone."""
    stored, meant = made.nvfp4(name, weight)
    text = json.dumps({"format_version": "1.0", "layers": {"x": form}})
    save_file(stored, tmp_path / "a.safetensors", {"_quantization_metadata": text})
    tensor = dequantised(read_file(tmp_path / "a.safetensors"))[f"{name}.weight"]
    assert torch.equal(values(tensor), meant[f"{name}.weight"])


def test_a_scale_beside_a_weight_in_16_bits(tmp_path, weight):
    """Some converters write a scale of 1 for layers that they left alone."""
    stored = {"x.weight": weight.half(), "x.scale_weight": torch.tensor(1.0)}
    save_file(stored, tmp_path / "a.safetensors")
    tensor = dequantised(read_file(tmp_path / "a.safetensors"))["x.weight"]
    assert torch.equal(values(tensor), weight.half().float())


def dequantisable():
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.dequantize(bytes_of(kind, 1), kind)
        except NotImplementedError:
            continue
        yield kind.name


def bytes_of(kind, blocks):
    return np.zeros((blocks, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)


def random_blocks(kind, count):
    """Random bytes, drawn again where a scale in them is NaN or Inf."""
    rng = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    while True:
        with np.errstate(all="ignore"):
            found = gguf.dequantize(blocks, kind).reshape(count, -1)
        wrong = ~np.isfinite(found).all(1) | (np.abs(found).max(1) > 1e30)
        if not wrong.any():
            return blocks, found
        blocks[wrong] = rng.integers(0, 256, (int(wrong.sum()), size), np.uint8)


@pytest.mark.parametrize("name", list(dequantisable()))
def test_every_type_of_ggml(tmp_path, monkeypatch, name):
    """Random blocks, so that every bit of every type counts, beside `gguf`'s own dequantiser."""
    monkeypatch.setattr(stored_tensors, "CHUNK", 5000)
    kind = gguf.GGMLQuantizationType[name]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    rows, across = 6, 3
    raw, found = random_blocks(kind, rows * across)
    shape = (rows, across * block)
    expected = torch.from_numpy(found.copy()).view(shape)
    tensors = {"x.weight": (int(kind), shape[::-1], raw.tobytes())}
    file = made.gguf_file(tmp_path / "a.gguf", tensors, {})
    tensor = dequantised(read_file(file))["x.weight"]
    assert tensor.shape == shape
    assert torch.equal(values(tensor).float(), expected)
    assert torch.equal(values(select_part(tensor, Rows(1, 2, of=2))).float(), expected[3:])


def test_every_type_that_people_use_is_among_them():
    wanted = {"BF16", "F16", "F32", "IQ4_NL", "IQ4_XS", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
    wanted |= {f"Q{bits}_K" for bits in range(2, 7)}
    assert wanted <= set(dequantisable())


def test_a_file_by_the_packages_own_writer(tmp_path, weight):
    """With settings of every type, and a vocabulary as a T5 has it."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    writer.add_array("tokenizer.ggml.tokens", [f"▁{i}" for i in range(1000)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1000)
    writer.add_array("tokenizer.ggml.none", [[1, 2]][0])
    writer.add_quantization_version(2)
    writer.add_bool("a", True)
    writer.add_float64("b", 0.1)
    writer.add_int8("c", -1)
    kind = gguf.GGMLQuantizationType.Q5_0
    raw = gguf.quantize(weight.numpy(), kind)
    writer.add_tensor("x.weight", raw, raw_dtype=kind)
    writer.add_tensor("x.bias", weight[0].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = dequantised(read_file(tmp_path / "a.gguf"))
    expected = torch.from_numpy(gguf.dequantize(raw, kind).copy())
    assert torch.equal(values(tensors["x.weight"]), expected)
    assert torch.equal(values(tensors["x.bias"]), weight[0])
    assert tensors["x.weight"].stored_as == "Q5_0"


def test_a_shape_that_comfy_changed(tmp_path):
    """A convolution's kernel does not fill blocks, so it is stored as a matrix."""
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    block, expected = made.gguf_block(weight.view(-1, 32), "Q8_0")
    settings = {"comfy.gguf.orig_shape.x.weight": [8, 4, 3, 3]}
    file = made.gguf_file(tmp_path / "a.gguf", {"x.weight": block}, settings)
    tensor = dequantised(read_file(file))["x.weight"]
    assert torch.equal(values(tensor), expected.view(8, 4, 3, 3))


def test_memory_is_that_of_a_chunk(tmp_path, monkeypatch):
    """A chunk is at most `CHUNK` bytes of values, whatever the tensor's size."""
    weight = torch.randn(1024, 512, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(stored_tensors, "CHUNK", 1 << 16)
    for form in made.COMFY:
        stored, _ = made.comfy({"x.weight": weight}, form)
        save_file(stored, tmp_path / "a.safetensors")
        (tensor,) = dequantised(read_file(tmp_path / "a.safetensors")).values()
        assert max(4 * chunk.numel() for chunk in tensor.chunks()) <= 1 << 16


@pytest.mark.parametrize(
    ("name", "stored", "shape"),
    [
        ("pos_embed", (64, 32), (1, 64, 32)),
        ("input_blocks.4.1.proj_in.weight", (64, 32, 1, 1), (64, 32)),
        ("input_blocks.4.1.proj_out.weight", (64, 32, 1, 1), (64, 32)),
        ("input_blocks.0.0.weight", (64, 32, 3, 3), (64, 32, 3, 3)),
        ("time_embed.0.weight", (64, 32), (64, 32)),
    ],
)
def test_shapes_that_ggml_changes(tmp_path, name, stored, shape):
    """A leading 1 is dropped; stable-diffusion.cpp keeps SDXL's projections as convolutions."""
    block, expected = made.gguf_block(torch.ones(stored), "F16")
    file = made.gguf_file(tmp_path / "a.gguf", {f"model.diffusion_model.{name}": block}, {})
    (tensor,) = read_file(file).values()
    assert tensor.shape == shape
    assert torch.equal(values(tensor).float(), expected.view(shape))
