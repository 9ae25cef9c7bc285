"""Embeddings of tokens in a LoRA's file: named and left out, never in silence."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from eri_runtime.errors import LoraError
from eri_runtime.weights.lora import adapters, apply_lora_for_inference
from tests.support.loras import KOHYA, base_weights, dotted, low_rank, ours

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
BUNDLED = {
    "bundle_emb.<my.cat>.clip_l": np.ones((2, 32), np.float32),
    "bundle_emb.<my.cat>.clip_g": np.ones((2, 32), np.float32),
    "bundle_emb.dog.string_to_param.*": np.ones((1, 32), np.float32),
}
ALONE = {
    "kohya": {"emb_params": np.ones((2, 32), np.float32)},
    "SDXL": {"clip_l": np.ones((2, 32), np.float32), "clip_g": np.ones((2, 32), np.float32)},
    "diffusers": {"<my-cat>": np.ones(32, np.float32)},
    "OneTrainer": BUNDLED,
}


@pytest.fixture(scope="module")
def lora(sdxl_checkpoint):
    shape = base_weights(sdxl_checkpoint)["denoiser"][f"{NAME}.weight"].shape
    return low_rank({NAME: shape}, dotted("unet."), KOHYA)


def test_bundled_tokens_are_named_and_left_out(sdxl_checkpoint, lora, caplog):
    expected = ours(sdxl_checkpoint, "sdxl", lora)["denoiser"]
    with caplog.at_level(logging.WARNING):
        found = ours(sdxl_checkpoint, "sdxl", lora | BUNDLED)["denoiser"]
    assert "'<my.cat>'" in caplog.text
    assert "left out" in caplog.text
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    base = base_weights(sdxl_checkpoint)["denoiser"]
    assert not np.array_equal(found[f"{NAME}.weight"], base[f"{NAME}.weight"])
    merged = apply_lora_for_inference(base, lora | BUNDLED)
    assert np.array_equal(merged[f"{NAME}.weight"], expected[f"{NAME}.weight"])


@pytest.mark.parametrize("kind", ALONE)
def test_a_textual_inversion_is_no_lora(sdxl_checkpoint, kind):
    base = base_weights(sdxl_checkpoint)["denoiser"]
    shapes = {"denoiser": {name: base[name].shape for name in base}}
    with pytest.raises(LoraError, match="a textual inversion") as caught:
        adapters(ALONE[kind], "sdxl", shapes)
    named = "<my.cat>" if kind == "OneTrainer" else next(iter(ALONE[kind]))
    assert f"'{named}'" in str(caught.value)
    assert "load_textual_inversion" in str(caught.value)
