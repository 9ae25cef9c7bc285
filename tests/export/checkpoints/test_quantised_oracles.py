"""Files that comfy-kitchen and bitsandbytes quantised read as those packages dequantise them.

They are large and no dependency of ours, so the test runs where they are installed:
`pip install comfy-kitchen bitsandbytes`.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from eri_export.checkpoints import stored_tensors
from eri_export.checkpoints.quantised import dequantised, read_file
from tests.support.quantised import described


@pytest.fixture
def weight():
    return torch.randn(192, 512, generator=torch.Generator().manual_seed(0))


def read(file, stored):
    """The values of the only weight of a file of these tensors."""
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file)
    (tensor,) = dequantised(read_file(file)).values()
    return torch.cat(list(tensor.chunks())).view(tensor.shape)


LAYOUTS = {
    "float8_e4m3fn": ("TensorCoreFP8Layout", {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}),
    "int8_tensorwise": ("TensorWiseINT8Layout", {}),
    "int8_tensorwise, a scale a row": ("TensorWiseINT8Layout", {"per_channel": True}),
    "int8_tensorwise, rotated": (
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 256},
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_comfy_kitchen(tmp_path, monkeypatch, weight, kind):
    """To the bit; a rotation's sums of 256 terms depend on the order, so 1e-6 there."""
    kitchen = pytest.importorskip("comfy_kitchen.tensor")
    monkeypatch.setattr(stored_tensors, "CHUNK", 50_000)
    name, options = LAYOUTS[kind]
    layout = getattr(kitchen, name)
    q, params = layout.quantize(weight, **options)
    expected = layout.dequantize(q, params)
    assert expected.dtype == torch.float32
    stored = {f"x.weight{end}": each for end, each in layout.state_dict_tensors(q, params).items()}
    rotation = {key: options[key] for key in options if key.startswith("convrot")}
    stored["x.comfy_quant"] = described(kind.split(",")[0], **rotation)
    got = read(tmp_path / "a.safetensors", stored)
    if rotation:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(192, 512), (24, 4, 3, 3), (5, 3)])
def test_bitsandbytes(tmp_path, monkeypatch, form, nested, shape):
    package = pytest.importorskip("bitsandbytes.functional")
    monkeypatch.setattr(stored_tensors, "CHUNK", 50_000)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    q, state = package.quantize_4bit(weight, quant_type=form, compress_statistics=nested)
    expected = package.dequantize_4bit(q, state)
    assert expected.dtype == torch.float32
    stored = {f"x.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    got = read(tmp_path / "a.safetensors", {"x.weight": q, **stored})
    assert torch.equal(got, expected)


def test_bitsandbytes_in_8_bits(tmp_path, weight):
    package = pytest.importorskip("bitsandbytes.functional")
    q, scales, _ = package.int8_vectorwise_quant(weight.half())
    expected = package.int8_vectorwise_dequant(q, scales)
    stored = {"x.weight": q, "x.SCB": scales, "x.weight_format": torch.tensor(0, dtype=torch.uint8)}
    assert torch.equal(read(tmp_path / "a.safetensors", stored), expected)
