"""The LoRA that ships beside the embedded checkpoint, and how it was made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open

from eri_export.embedded import checkpoint, emoji_data, lora, style_lora
from eri_runtime.errors import UnknownNameError


def read(path):
    """The metadata and the tensors of a file."""
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_it_is_small_and_names_layers_of_the_checkpoint():
    metadata, tensors = read(lora())
    assert lora().stat().st_size < 600_000
    config = json.loads(metadata["lora_adapter_metadata"])
    rank = config["transformer.r"]
    assert config["transformer.lora_alpha"] == rank == style_lora.RANK
    model = SD3Transformer2DModel.from_pretrained(checkpoint() / "transformer")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(tensors) == 2 * sum(
        any(name.endswith(f".{layer}.weight") for layer in style_lora.LAYERS)
        for name in (f".{name}" for name in shapes)
    )
    for name, value in tensors.items():
        layer, _, part = name.removeprefix("transformer.").partition(".lora_")
        rows, columns = shapes[f"{layer}.weight"]
        assert value.shape == {"A.weight": (rank, columns), "B.weight": (rows, rank)}[part]
        assert value.dtype == np.float16
        assert np.isfinite(value).all()


def test_another_lora_is_not_known():
    assert lora("blue-ink") == lora()
    with pytest.raises(UnknownNameError, match="'red-ink', expected one of blue-ink"):
        lora("red-ink")


def test_ink_is_blue_and_paper_white():
    grey = np.linspace(0, 1, 5, dtype=np.float32)[None, :, None, None].repeat(3, -1)
    inked = style_lora.in_blue_ink(grey)[0, :, 0]
    np.testing.assert_allclose(inked[0], style_lora.INK, atol=1e-6)
    np.testing.assert_allclose(inked[-1], 1, atol=1e-6)
    assert (np.diff(inked, axis=0) > 0).all()
    assert (inked[:-1, 2] > inked[:-1, 0]).all()


def test_a_short_training_moves_only_the_lora_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_data, "chosen_names", lambda: ("red heart", "pizza"))
    monkeypatch.setattr(style_lora, "STEPS", 2)
    output = tmp_path / "new" / "ink.safetensors"
    style_lora.train_lora(tmp_path, output, minutes=0.05)
    metadata, tensors = read(output)
    assert any(np.abs(value).max() > 0 for name, value in tensors.items() if "lora_B" in name)
    assert set(tensors) == set(read(lora())[1])
    pipe = StableDiffusion3Pipeline.from_pretrained(checkpoint(), dtype=torch.float32)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(output.parent, weight_name=output.name)
    for name, value in pipe.transformer.state_dict().items():
        if "lora" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")])
    steps = torch.load(tmp_path / "blue-ink.pt", weights_only=True)["step"]
    style_lora.train_lora(tmp_path, output, minutes=0.08)
    assert torch.load(tmp_path / "blue-ink.pt", weights_only=True)["step"] > steps
    again, _ = read(output)
    assert again == metadata
