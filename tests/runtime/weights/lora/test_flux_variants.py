"""A LoRA of Flux dev on schnell, and control LoRAs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from eri_runtime.errors import LoraError, UnmatchedKeysError
from eri_runtime.weights.lora import adapters
from tests.support.loras import (
    KOHYA,
    assert_same,
    base_weights,
    dotted,
    joined,
    kohya,
    low_rank,
    modules,
    ours,
    theirs,
)

EMBEDDER = "time_text_embed.guidance_embedder.linear_"
GUIDANCE = {
    "diffusers": ("transformer.", [f"{EMBEDDER}1", f"{EMBEDDER}2"]),
    "kohya": ("lora_unet_", ["guidance_in.in_layer", "guidance_in.out_layer"]),
    "comfy": ("diffusion_model.", ["guidance_in.in_layer", "guidance_in.out_layer"]),
}


def guidance_lora(case, width=32):
    prefix, names = GUIDANCE[case]
    naming = kohya(prefix) if prefix == "lora_unet_" else dotted(prefix)
    return low_rank(dict.fromkeys(names, (width, 256)), naming, KOHYA, alpha=1)


@pytest.fixture(scope="module")
def attention(flux_schnell_checkpoint):
    shapes = modules(base_weights(flux_schnell_checkpoint)["denoiser"], "to_q", "to_add_out")
    return low_rank(shapes, dotted("transformer."))


def test_a_lora_of_dev_on_schnell(flux_schnell_checkpoint, attention, tmp_path, caplog):
    """It is what diffusers makes of the LoRA without the keys of the guidance embedder."""
    expected = theirs(flux_schnell_checkpoint, tmp_path, attention)
    for case in GUIDANCE:
        own = guidance_lora(case)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            merged = ours(flux_schnell_checkpoint, "flux", joined(attention, own))
        assert_same(merged, expected)
        assert all(key in caplog.text for key in own)
        assert f"{len(own)} keys of the LoRA change the guidance embedder" in caplog.text


def test_other_keys_beside_the_guidance_embedders_are_still_an_error(
    flux_schnell_checkpoint, attention
):
    lora = joined(attention, guidance_lora("kohya"), {"x": np.zeros(1, np.float32)})
    with pytest.raises(UnmatchedKeysError, match="1 of") as caught:
        ours(flux_schnell_checkpoint, "flux", lora)
    assert caught.value.keys == ("x",)


def test_a_lora_of_the_guidance_embedder_alone_does_nothing_to_schnell(flux_schnell_checkpoint):
    lora = guidance_lora("diffusers")
    with pytest.raises(UnmatchedKeysError) as caught:
        ours(flux_schnell_checkpoint, "flux", lora)
    assert set(caught.value.keys) == set(lora)


def test_dev_has_a_guidance_embedder(flux_checkpoint):
    base = base_weights(flux_checkpoint)["denoiser"]
    lora = low_rank(modules(base, "guidance_embedder.linear_1"), dotted("transformer."))
    merged = ours(flux_checkpoint, "flux", lora)["denoiser"]
    assert not np.array_equal(merged[f"{EMBEDDER}1.weight"], base[f"{EMBEDDER}1.weight"])


@pytest.mark.parametrize("partial", [False, True])
def test_a_lora_of_which_nothing_matches_is_refused_with_the_embedder_too(partial):
    embedder = dict.fromkeys((f"{EMBEDDER}1", "blocks.9.nothing"), (8, 8))
    lora = low_rank(embedder, dotted("transformer."))
    with pytest.raises(UnmatchedKeysError, match="nothing") as caught:
        adapters(lora, "flux", {"denoiser": {"proj_out.weight": (8, 8)}}, partial)
    assert "partial=True" not in str(caught.value)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    "name", ["img_in", "transformer.x_embedder", "lora_unet_img_in", "transformer.img_in.proj"]
)
def test_a_control_lora_is_refused(flux_checkpoint, attention, name, partial):
    base = base_weights(flux_checkpoint)["denoiser"]
    rows, columns = base["x_embedder.weight"].shape
    lora = joined(attention, low_rank({name: (rows, 2 * columns)}, dotted("")))
    shapes = {"denoiser": {key: each.shape for key, each in base.items()}}
    with pytest.raises(LoraError, match="control LoRA, such as Flux Depth or Canny") as caught:
        adapters(lora, "flux", shapes, partial)
    said = str(caught.value)
    assert f"{name}.lora_A.weight" in said
    assert f"{2 * columns} channels" in said
    assert f"the {columns} channels of this model" in said
    assert "use a LoRA without one" in said


def test_another_width_is_no_control_lora(flux_checkpoint):
    base = base_weights(flux_checkpoint)["denoiser"]
    rows, columns = base["x_embedder.weight"].shape
    lora = low_rank({"img_in": (rows, columns + 1)}, dotted(""))
    with pytest.raises(LoraError, match=f"inputs of {columns}, not {columns + 1}"):
        ours(flux_checkpoint, "flux", lora)
