"""LoRAs that are damaged, or for something else: each error names the key and the way out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eri_runtime.errors import EriError, LoraError, NonFiniteError, UnmatchedKeysError
from eri_runtime.weights.lora import adapters, merged_weight, parse
from eri_runtime.weights.lora.keys import ENDINGS
from eri_runtime.weights.lora.model_detection import detect_model
from eri_runtime.weights.lora.targets import PREFIXES, module_targets
from tests.support.loras import KOHYA, base_weights, kohya, low_rank

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_" + NAME.replace(".", "_")


@pytest.fixture(scope="module")
def shapes(sdxl_checkpoint):
    return {
        part: {name: each[name].shape for name in each}
        for part, each in base_weights(sdxl_checkpoint).items()
    }


@pytest.fixture
def good(shapes):
    """A LoRA of one weight, which each test spoils."""
    return low_rank({NAME: shapes["denoiser"][f"{NAME}.weight"]}, kohya("lora_unet_"), KOHYA)


def refusal(lora, shapes, error=LoraError, family="sdxl", partial=False):
    with pytest.raises(EriError) as caught:
        adapters(lora, family, shapes, partial)
    assert caught.type is error
    return str(caught.value)


def test_the_file_that_is_spoiled_is_good(good, shapes):
    found = adapters(good, "sdxl", shapes)
    assert list(found["denoiser"]) == [f"{NAME}.weight"]


ROWS, COLUMNS, RANK = 64, 64, 3


def array(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


SPOILED = {
    "a half is missing": ({f"{KEY}.lora_up.weight": None}, r"only .*lora_down\.weight"),
    "alpha alone": (
        {f"{KEY}{end}": None for end in KOHYA} | {f"{KEY}.alpha": array()},
        r"only .*\.alpha",
    ),
    "ranks differ": ({f"{KEY}.lora_up.weight": array(ROWS, 4)}, r"lora_up.*\[64, 4\].*a rank of 3"),
    "outputs": ({f"{KEY}.lora_up.weight": array(63, RANK)}, r"lora_up.*outputs of 64, not 63"),
    "inputs": ({f"{KEY}.lora_down.weight": array(RANK, 9)}, r"lora_down.*inputs of 64, not 9"),
    "a vector": ({f"{KEY}.lora_down.weight": array(COLUMNS)}, r"lora_down.*\[64\].*a matrix"),
    "nothing in it": ({f"{KEY}.lora_down.weight": array(0, COLUMNS)}, r"lora_down.*not empty"),
    "alphas": ({f"{KEY}.alpha": array(2)}, r"alpha.*\[2\].*one number"),
    "complex": ({f"{KEY}.lora_up.weight": array(ROWS, RANK, dtype="c8")}, r"lora_up.*complex64"),
    "integers": ({f"{KEY}.lora_up.weight": array(ROWS, RANK, dtype=int)}, r"lora_up.*int64"),
    "no array": ({f"{KEY}.lora_up.weight": [[1.0]]}, r"lora_up.*got list"),
    "two kinds": ({f"{KEY}.diff": array(ROWS, COLUMNS)}, r"one kind of update"),
    "a length too few": ({f"{KEY}.dora_scale": array(63, 1)}, r"dora_scale.*64 outputs"),
    "a length for all": ({f"{KEY}.dora_scale": array()}, r"dora_scale.*\[\].*64 outputs"),
    "one factor twice": ({f"{KEY}.lora_A.weight": array(RANK, COLUMNS)}, r"one of the two"),
}
DAMAGED = {
    "nan": {f"{KEY}.lora_up.weight": np.full((ROWS, RANK), np.nan, np.float32)},
    "inf": {f"{KEY}.lora_down.weight": np.full((RANK, COLUMNS), np.inf, np.float16)},
    "too large": {f"{KEY}.lora_down.weight": np.full((RANK, COLUMNS), 1e300)},
    "alpha": {f"{KEY}.alpha": np.array(np.nan, np.float32)},
}


def spoil(good, changes):
    return {key: value for key, value in (good | changes).items() if value is not None}


@pytest.mark.parametrize("how", SPOILED)
def test_factors_that_do_not_fit(good, shapes, how):
    changes, words = SPOILED[how]
    with pytest.raises(LoraError, match=words):
        adapters(spoil(good, changes), "sdxl", shapes)


@pytest.mark.parametrize("how", DAMAGED)
def test_numbers_that_are_none(good, shapes, how):
    (key,) = DAMAGED[how]
    assert key in refusal(spoil(good, DAMAGED[how]), shapes, NonFiniteError)


LYCORIS = {
    "loha ranks": ({"hada_w1_a": (64, 2), "hada_w1_b": (3, 64)}, r"hada_w1_a.*a rank of 3"),
    "loha halves": ({"hada_w2_a": (63, 2), "hada_w2_b": (2, 64)}, r"hada_w2_a.*outputs of 64"),
    "lokr sides": ({"lokr_w1": (4, 4), "lokr_w2": (16, 15)}, r"64 by 60.*64 by 64"),
    "lokr one side": ({"lokr_w1": (4, 4)}, r"only .*lokr_w1"),
    "lokr core": (
        {"lokr_w1": (4, 4), "lokr_w2_a": (2, 16), "lokr_w2_b": (2, 16), "lokr_t2": (2, 2, 3, 3)},
        r"lokr_w2_b.*inputs of 16, not 144",
    ),
    "a difference": ({"diff": (64, 63)}, r"diff.*inputs of 64, not 63"),
}


@pytest.mark.parametrize("how", LYCORIS)
def test_products_that_do_not_fit(shapes, how):
    sizes, words = LYCORIS[how]
    whole = {"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 2), "hada_w2_b": (2, 64)}
    every = (whole if "loha" in how else {}) | sizes
    with pytest.raises(LoraError, match=words):
        adapters({f"{KEY}.{end}": array(*size) for end, size in every.items()}, "sdxl", shapes)


def test_a_product_too_large_is_refused_before_it_is_made(shapes):
    """A few kilobytes that multiply to terabytes."""
    wide = {"lokr_w1_a": (99999, 1), "lokr_w1_b": (1, 99999), "lokr_w2": (1, 1)}
    refusal({f"{KEY}.{end}": array(*size) for end, size in wide.items()}, shapes)
    conv = "lora_unet_mid_block_resnets_0_conv1"
    core = {"lora_down": (1, 99999, 1, 1), "lora_mid": (1, 1, 999, 999), "lora_up": (64, 1, 1, 1)}
    lora = {f"{conv}.{end}.weight": array(*size) for end, size in core.items()}
    assert "inputs of" in refusal(lora, shapes)


def test_keys_that_match_nothing_are_listed(good, shapes, caplog):
    strange = {"lora_unet_nowhere.alpha": array(), f"{KEY}.scalar": array(), "x": array()}
    said = refusal(good | strange, shapes, UnmatchedKeysError)
    assert all(key in said for key in strange)
    assert "3 of 5" in said
    assert "partial" in said
    with caplog.at_level(logging.WARNING), pytest.raises(UnmatchedKeysError) as caught:
        adapters(good | strange, "sdxl", shapes)
    assert set(caught.value.keys) == set(strange)
    assert not caplog.records
    assert len(adapters(good | strange, "sdxl", shapes, partial=True)["denoiser"]) == 1
    assert all(key in caplog.text for key in strange)


def test_a_file_of_which_nothing_matches_is_no_partial_one(shapes):
    refusal({"x": array()}, shapes, UnmatchedKeysError, partial=True)
    assert "no tensors" in refusal({}, shapes)


def test_a_part_that_the_bundle_has_not(shapes):
    """Keys for a text encoder match nothing where there is none."""
    lora = low_rank(modules_of(shapes, "text_encoder"), kohya("lora_te1_"), KOHYA)
    assert adapters(lora, "sdxl", shapes).keys() == {"text_encoder"}
    alone = {"denoiser": shapes["denoiser"]}
    assert "lora_te1_" in refusal(lora, alone, UnmatchedKeysError)


def modules_of(shapes, part):
    names = (name.removesuffix(".weight") for name in shapes[part] if "q_proj.weight" in name)
    return {name: shapes[part][f"{name}.weight"] for name in names}


def test_a_bias_that_the_layer_has_not(good, shapes):
    lora = good | {f"{KEY}.diff_b": array(ROWS)}
    assert f"{KEY}.diff_b" in refusal(lora, shapes, UnmatchedKeysError)


def test_two_modules_for_one_weight(good, shapes):
    other = {f"unet.{NAME}{end}": good[KEY + end] for end in KOHYA}
    assert "again" in refusal(good | other, shapes)


def test_published_names_beside_diffusers_are_left_out(shapes, good, caplog):
    """Some files have each module under both names; the effect is wanted once."""
    published = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    both = good | {published + end: good[KEY + end] for end in KOHYA}
    found = adapters(both, "sdxl", shapes)["denoiser"]
    assert {name: len(changes) for name, changes in found.items()} == {f"{NAME}.weight": 1}
    assert published in caplog.text


OTHERS = {
    "Flux": "lora_unet_double_blocks_0_img_attn_qkv",
    "SD3": "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "SD3 or Flux": "transformer.transformer_blocks.0.attn.add_q_proj",
    "SDXL": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "Stable Diffusion 1 or 2": "lora_unet_down_blocks_0_attentions_0_proj_in",
    "Wan": "diffusion_model.blocks.0.self_attn.q",
}


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize(("family", "own"), [("sdxl", "SDXL"), ("sd35", "SD3"), ("flux", "Flux")])
def test_a_lora_for_another_model_is_said_to_be_one(request, model, family, own):
    """Whether its names match nothing, or match weights of other shapes."""
    base = base_weights(request.getfixturevalue(f"{family}_checkpoint"))
    shapes = {part: {name: each[name].shape for name in each} for part, each in base.items()}
    lora = low_rank({OTHERS[model]: (5, 7)}, str, KOHYA)
    assert detect_model(lora) == model
    with pytest.raises(LoraError) as caught:
        adapters(lora, family, shapes)
    assert OTHERS[model] in str(caught.value)
    assert (f"looks like a LoRA for {model}" in str(caught.value)) == (own not in model)


def test_names_that_fit_with_shapes_that_do_not(shapes):
    """Stable Diffusion 1's middle block has SDXL's names."""
    lora = low_rank(
        {
            "down_blocks.0.attentions.0.proj_in": (320, 320, 1, 1),
            NAME: (1280, 1280),
        },
        kohya("lora_unet_"),
        KOHYA,
    )
    said = refusal({key: value for key, value in lora.items() if KEY in key}, shapes)
    assert "outputs of 64, not 1280" in said
    assert "Stable Diffusion 1 or 2" in refusal(lora, shapes, UnmatchedKeysError)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"unet.lora_alpha":"a"}', '{"unet.lora_alpha":NaN}', "[" * 99999]
)
def test_metadata_that_is_no_config(good, shapes, text):
    class File(dict):
        metadata = {"lora_adapter_metadata": text}  # noqa: RUF012

    lora = File({f"unet.{NAME}{end}": good[KEY + end] for end in KOHYA})
    assert "lora_adapter_metadata" in refusal(lora, shapes)


# anything at all: only typed errors

STEMS = st.sampled_from(
    [
        *(prefix + NAME for prefix in ("", "unet.", "transformer.", "base_model.model.unet.")),
        *(KEY, "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_conv_in"),
        *("lora_unet_mid_block_resnets_0_conv1", "mid_block.resnets.0.norm1", "", ".", "x"),
    ]
)
SCALED = tuple(
    f".lora_{half}.{word}"
    for half in ("up", "down")
    for word in ("scale_weight", "weight_scale", "comfy_quant", "scale_input")
)
KEYS = st.one_of(
    st.tuples(STEMS, st.sampled_from([*ENDINGS])).map("".join),
    st.tuples(STEMS, st.sampled_from(SCALED)).map("".join),
    st.sampled_from(["bundle_emb.x.clip_l", "emb_params", "<x>", "scaled_fp8", "_orig_mod."]),
    st.tuples(st.sampled_from([*PREFIXES]), st.text(max_size=9)).map("".join),
    st.text(max_size=12),
)
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 32, 64]), max_size=4)
DTYPES = st.sampled_from(["f4", "f2", "f8", "i4", "u1", "?", "c8", "S1", "O"])


@st.composite
def arrays(draw):
    shape, dtype = draw(SIZES), draw(st.sampled_from(["f4", "f4", "f2"]) | DTYPES)
    value = np.zeros(shape, dtype)
    if value.size and dtype[0] == "f":
        value.flat[0] = draw(st.sampled_from([0, 1, -2.5, 6e4, np.nan, np.inf]))
    return value


@given(st.dictionaries(KEYS, arrays() | st.none() | st.integers(), max_size=5), st.booleans())
@settings(max_examples=400)
def test_hostile_files_give_typed_errors_or_weights(shapes, lora, partial):
    try:
        found = adapters(lora, "sdxl", shapes, partial)
    except EriError:
        return
    for part, weights in found.items():
        for name, changes in weights.items():
            base = np.ones(shapes[part][name], np.float32)
            try:
                merged = merged_weight(name, base, [(change, 0.5) for change in changes])
            except NonFiniteError:
                continue
            assert merged.shape == base.shape
            assert np.isfinite(merged).all()


@given(st.lists(st.text(max_size=30) | KEYS, unique=True, max_size=6))
def test_any_keys_are_sorted_without_loss(keys):
    try:
        parsed = parse(keys)
    except LoraError:
        return
    found = [key for module in parsed.modules for key in module.keys.values()]
    assert sorted([*found, *parsed.unknown]) == sorted(keys)


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_no_two_weights_have_one_flat_name(request, family):
    """Kohya's underscores are told apart because no name of a family needs them told."""
    base = base_weights(request.getfixturevalue(f"{family}_checkpoint"))
    for part, names in module_targets(family, base).items():
        for alias, targets in names.items():
            own = [target.name for target in targets if not target.published]
            kinds = {name.rpartition(".")[2] for name in own}
            assert len(own) == len(kinds), (part, alias, own)
