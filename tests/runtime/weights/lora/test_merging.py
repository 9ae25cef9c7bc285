"""What merging promises beside the numbers: purity, bits, types, several at once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.errors import LoraError, NonFiniteError, UsageError
from eri_runtime.weights.lora import adapters, apply_lora_for_inference, merged_weight, merging
from tests.support.loras import (
    KOHYA,
    base_weights,
    dotted,
    joined,
    kohya,
    low_rank,
    modules,
    normal,
)

TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def unet(sdxl_checkpoint):
    return base_weights(sdxl_checkpoint)["denoiser"]


@pytest.fixture(scope="module")
def lora(unet):
    return low_rank(modules(unet, "to_q", "conv1"), kohya("lora_unet_"), KOHYA, alpha=1)


def scaled_change(unet, lora, name, scale):
    """The change of a weight in float64."""
    key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    down, up = (lora[key + end].astype(np.float64) for end in KOHYA)
    product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return scale / len(down) * product.reshape(unet[name].shape)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [-1.5, 0.3, 1])
def test_a_weight_is_rounded_once_to_its_own_type(unet, lora, kind, scale):
    base = {name: unet[name].astype(TYPES[kind]) for name in unet}
    merged = apply_lora_for_inference(base, lora, scale)
    changed = [f"{name}.weight" for name in modules(unet, "to_q", "conv1")]
    for name in changed:
        exact = base[name].astype(np.float64) + scaled_change(unet, lora, name, scale)
        ulp = ml_dtypes.finfo(TYPES[kind]).eps
        error = np.abs(merged[name].astype(np.float64) - exact)
        assert merged[name].dtype == TYPES[kind]
        # half a unit in the last place, and float32's own rounding of the sum
        assert (error <= 0.5 * ulp * np.abs(exact) * (1 + 1e-3) + 1e-5).all(), name
    assert len(changed) > 5


def test_what_is_not_touched_is_the_very_same(unet, lora):
    merged = apply_lora_for_inference(unet, lora, 0.8)
    names = {f"{name}.weight" for name in modules(unet, "to_q", "conv1")}
    assert {name for name in unet if merged[name] is not unet[name]} == names
    assert list(merged) == list(unet)


def test_nothing_given_is_changed(unet, lora):
    before = {name: value.copy() for name, value in (*unet.items(), *lora.items())}
    own = {name: unet[name].copy() for name in unet}
    apply_lora_for_inference(own, lora, 2)
    for name, value in (*own.items(), *lora.items()):
        assert np.array_equal(value, before[name])


@pytest.mark.parametrize("scale", [0, 0.0, -0.0])
def test_a_scale_of_zero_gives_the_very_same_weights(unet, lora, scale):
    rng = np.random.default_rng(0)
    for name, shape in modules(unet, "to_q").items():  # a DoRA, which would normalise
        lora = {**lora, f"{kohya('lora_unet_')(name)}.dora_scale": normal(rng, shape[0], 1)}
    merged = apply_lora_for_inference(unet, lora, scale)
    assert all(merged[name] is unet[name] for name in unet)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e300])
def test_a_scale_that_is_no_number(unet, lora, scale):
    with pytest.raises(UsageError, match="scale"):
        apply_lora_for_inference(unet, lora, scale)


def test_a_scale_that_overflows_the_type_is_named(unet, lora):
    base = {name: unet[name].astype(np.float16) for name in unet}
    for weights, scale in ((base, 1e8), (unet, 3e38)):
        with pytest.raises(NonFiniteError, match=r"(to_q|conv1)\.weight"):
            apply_lora_for_inference(weights, lora, scale)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_several_add_up(scales):
    rng = np.random.default_rng(0)
    base = normal(rng, 8, 6)
    shapes = {"denoiser": {"conv_in.weight": base.shape}}
    total, changes = base.astype(np.float64), []
    for seed, scale in enumerate(scales):
        file = low_rank({"conv_in": base.shape}, dotted("unet."), seed=seed, rank=1 + seed)
        (change,) = adapters(file, "sdxl", shapes)["denoiser"]["conv_in.weight"]
        changes.append((change, scale))
        down, up = change.low_rank
        total += scale * up.astype(np.float64) @ down
    merged = merged_weight("conv_in.weight", base, changes)
    assert np.allclose(merged, total, rtol=1e-5, atol=1e-5)


def test_a_change_alone_is_what_it_is_merged(unet, lora):
    """`Adapter.merged` and `low_rank` say the same as `merged_weight`."""
    shapes = {"denoiser": {name: unet[name].shape for name in unet}}
    for name, (change,) in adapters(lora, "sdxl", shapes)["denoiser"].items():
        merged = merged_weight(name, unet[name], [(change, 0.4)])
        assert np.allclose(change.merged(unet[name], 0.4), merged, rtol=1e-5, atol=1e-6)
        assert change.merged(unet[name], 0) is unet[name]
        assert (change.low_rank is not None) == (unet[name].ndim == 2)


PLACES = {
    "denoiser": ("diffusion_model.", "to_q"),
    "text_encoder": ("text_encoder.", "q_proj"),
    "text_encoder_2": ("text_encoder_2.", "_proj", "SelfAttention.q"),
    "text_encoder_3": ("lora_te3_", "SelfAttention.q"),
}


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_a_network_is_told_by_its_names(request, family):
    """Each takes its own keys of a file that has some for others too."""
    base = base_weights(request.getfixturevalue(f"{family}_checkpoint"))
    shapes = {part: modules(each, *PLACES[part][1:]) for part, each in base.items()}
    files = {
        part: low_rank(each, (kohya if "lora_" in PLACES[part][0] else dotted)(PLACES[part][0]))
        for part, each in shapes.items()
    }
    for part, each in base.items():
        lora = joined(files[part], files["denoiser"] if part != "denoiser" else {})
        merged = apply_lora_for_inference(each, lora)
        changed = {name for name in each if merged[name] is not each[name]}
        assert changed == {f"{name}.weight" for name in shapes[part]}, part


def test_keys_of_two_encoders_that_both_fit_are_not_guessed(sdxl_checkpoint):
    base = base_weights(sdxl_checkpoint)["text_encoder_2"]
    shapes = modules(base, "q_proj")
    lora = joined(
        *(low_rank(shapes, kohya(prefix), KOHYA) for prefix in ("lora_te1_", "lora_te2_"))
    )
    with pytest.raises(LoraError, match="text_encoder and text_encoder_2"):
        apply_lora_for_inference(base, lora)


def test_names_of_no_known_network(lora):
    with pytest.raises(LoraError, match=r"decoder\.conv_in"):
        apply_lora_for_inference({"decoder.conv_in.weight": np.ones((2, 2), np.float32)}, lora)


def test_a_file_of_bfloat16_need_not_stay(unet, lora, tmp_path):
    """Factors are read when the LoRA is matched: what happens to the file then is nothing to it."""
    file = tmp_path / "lora.safetensors"
    save_file({key: torch.from_numpy(value).bfloat16() for key, value in lora.items()}, file)
    shapes = {"denoiser": {name: unet[name].shape for name in unet}}
    found = adapters(read_tensors(file), "sdxl", shapes)["denoiser"]
    file.write_bytes(file.read_bytes()[:8] + b"\0" * (file.stat().st_size - 8))
    assert all(np.any(change.low_rank[1]) for (change,) in found.values() if change.low_rank)
    assert any(change.low_rank for (change,) in found.values())


def test_more_cores_give_the_same_bits(unet, lora, monkeypatch):
    one, four = [], []
    for merged, cores in ((one, 1), (four, 4)):
        monkeypatch.setattr(merging, "cores", lambda cores=cores: cores)
        merged.append(apply_lora_for_inference(unet, lora, 0.7))
    assert one[0].keys() == four[0].keys()
    for name, values in one[0].items():
        np.testing.assert_array_equal(values, four[0][name])
