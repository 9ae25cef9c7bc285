"""LoRAs of a pipeline: pictures as diffusers makes them, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.commands.main import main
from eri_runtime.errors import (
    BackendError,
    EriError,
    LoraError,
    NonFiniteError,
    UnknownNameError,
    UnmatchedKeysError,
    UsageError,
)
from tests.support.loras import KOHYA, base_weights, dotted, joined, kohya, low_rank, modules

# float32 on both sides, but other kernels: rounding differs, and the steps amplify it
LATENT_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2 / 255
WORDS = {"prompt": "a red heart", "height": 48, "width": 64, "num_inference_steps": 3}
FAMILIES = {
    "sdxl": (StableDiffusionXLPipeline, "unet.", {"guidance_scale": 5.0}),
    "sd35": (
        StableDiffusion3Pipeline,
        "transformer.",
        {"guidance_scale": 5.0, "max_sequence_length": 20},
    ),
    "flux": (FluxPipeline, "transformer.", {"guidance_scale": 3.5, "max_sequence_length": 20}),
}
SMALL = 0.05  # factors of a size that changes a picture and does not destroy it


def small(lora):
    return {name: np.float32(SMALL) * value for name, value in lora.items()}


def trained(checkpoint, prefix, *, seed=0):
    """A LoRA of the attention of the denoiser and of the first text encoder, in peft's names."""
    base = base_weights(checkpoint)
    names = ("to_q", "to_k", "to_v", "to_out.0")
    denoiser = low_rank(modules(base["denoiser"], *names), dotted(prefix), seed=seed)
    text = {
        f"text_model.{name.removeprefix('text_model.')}": shape
        for name, shape in modules(base["text_encoder"], "q_proj", "v_proj", "fc1").items()
    }
    return small(joined(denoiser, low_rank(text, dotted("text_encoder."), seed=seed + 1)))


def saved(path, lora):
    save_file(dict(lora), path)
    return path


def latents(pipe, **words):
    result = pipe(**{**WORDS, "guidance_scale": 2.0, "seed": 3, "output_type": "latent", **words})
    return result.latents


@pytest.fixture(scope="module")
def files(sdxl_checkpoint, tmp_path_factory):
    """Three LoRAs of the tiny SDXL: two of attention and text, one of convolutions by kohya."""
    folder = tmp_path_factory.mktemp("loras")
    convolutions = modules(base_weights(sdxl_checkpoint)["denoiser"], "conv1", "conv2")
    return {
        "first": saved(folder / "first.safetensors", trained(sdxl_checkpoint, "unet.")),
        "second": saved(folder / "second.safetensors", trained(sdxl_checkpoint, "unet.", seed=7)),
        "third": saved(
            folder / "third.safetensors",
            small(low_rank(convolutions, kohya("lora_unet_"), KOHYA)),
        ),
    }


@pytest.fixture
def pipe(sdxl_bundle):
    with eri.load(sdxl_bundle) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def plain(sdxl_bundle):
    with eri.load(sdxl_bundle) as pipe:
        return latents(pipe)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_diffusers_with_the_lora_fused(request, family, tmp_path):
    make, prefix, words = FAMILIES[family]
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    path = saved(tmp_path / "style.safetensors", trained(checkpoint, prefix))
    theirs = make.from_pretrained(checkpoint)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(tmp_path, weight_name=path.name)
    theirs.fuse_lora(components=theirs._lora_loadable_modules, lora_scale=0.7)
    theirs.unload_lora_weights()
    call, made = {**WORDS, **words}, {}
    for kind in ("latent", "np"):
        generator = torch.Generator("cpu").manual_seed(3)
        made[kind] = np.asarray(theirs(**call, generator=generator, output_type=kind).images)
    with eri.load(request.getfixturevalue(f"{family}_bundle")) as pipe:
        before = pipe(**call, seed=3, output_type="latent").latents
        pipe.load_lora(path, 0.7)
        result = pipe(**call, seed=3, output_type="np")
    error = np.abs(result.latents - made["latent"]).max() / np.abs(made["latent"]).max()
    assert error <= LATENT_TOLERANCE
    assert np.abs(result.images - made["np"]).max() <= PIXEL_TOLERANCE
    change = np.abs(result.latents - before).max() / np.abs(before).max()
    assert change > 50 * LATENT_TOLERANCE


SCALES = st.floats(-2, 2)
STEPS = st.one_of(
    st.tuples(st.just("load"), st.sampled_from(["first", "second", "third"]), SCALES),
    st.tuples(
        st.just("set"), st.dictionaries(st.sampled_from(["first", "third"]), st.floats(-1, 1))
    ),
    st.tuples(st.just("unload"), st.sampled_from(["first", "second", "third"])),
    st.tuples(st.just("run")),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=1, max_size=6))
def test_after_any_sequence_unloading_gives_the_base_bits(pipe, plain, files, steps):
    for step in steps:
        match step:
            case "load", name, scale:
                assert pipe.load_lora(files[name], scale) == name
            case "set", scales:
                pipe.set_loras({str(files[name]): scale for name, scale in scales.items()})
            case "unload", name:
                if name in pipe.loras:
                    pipe.unload_loras(name)
            case ("run",):
                latents(pipe)
    pipe.unload_loras()
    assert pipe.loras == {}
    np.testing.assert_array_equal(latents(pipe), plain)


def test_one_lora_for_another_is_as_if_the_first_had_never_been(sdxl_bundle, files):
    with eri.load(sdxl_bundle) as pipe:
        pipe.load_lora(files["second"])
        expected = latents(pipe)
    with eri.load(sdxl_bundle) as pipe:
        pipe.load_lora(files["first"], 1.3)
        assert not np.array_equal(latents(pipe), expected)
        pipe.set_loras({files["second"]: 1.0})
        np.testing.assert_array_equal(latents(pipe), expected)


def test_scales_by_component_and_a_scale_of_zero(pipe, plain, files):
    pipe.load_lora(files["first"], {"denoiser": 0.0, "text_encoder": 0.0})
    np.testing.assert_array_equal(latents(pipe), plain)
    pipe.set_loras({"first": 0.0})
    np.testing.assert_array_equal(latents(pipe), plain)
    pipe.set_loras({"first": {"text_encoder": 0}})
    denoiser = latents(pipe)
    pipe.set_loras({"first": {"denoiser": 0}})
    text = latents(pipe)
    pipe.set_loras({"first": 1})
    assert len({each.tobytes() for each in (plain, denoiser, text, latents(pipe))}) == 4
    assert pipe.loras == {"first": 1}


def test_two_at_once_are_their_sum(pipe, files, tmp_path):
    pipe.set_loras({files["first"]: 0.5, files["second"]: -0.25})
    both = latents(pipe)
    pipe.unload_loras()
    first, second = (dict(read_tensors(files[name])) for name in ("first", "second"))
    whole = {}
    for name, value in first.items():
        scale, axis = (1, 0) if ".lora_A." in name else (None, 1)
        halves = (value, second[name]) if scale else (0.5 * value, -0.25 * second[name])
        whole[name] = np.concatenate(halves, axis).astype(np.float32)
    pipe.load_lora(whole, name="whole")
    error = np.abs(latents(pipe) - both).max() / np.abs(both).max()
    assert error <= LATENT_TOLERANCE


def test_updates_lie_beneath_loras(pipe, files, sdxl_checkpoint):
    base = base_weights(sdxl_checkpoint)["denoiser"]
    update = {name: 1.1 * base[name] for name in list(base)[:40]}
    pipe.update_weights(update)
    updated = latents(pipe)
    pipe.load_lora(files["first"])
    both = latents(pipe)
    pipe.unload_loras()
    np.testing.assert_array_equal(latents(pipe), updated)
    pipe.reset_weights()
    pipe.load_lora(files["first"])
    assert not np.array_equal(latents(pipe), both)
    pipe.update_weights(update)
    np.testing.assert_array_equal(latents(pipe), both)


REFUSED = {
    "no such file": ("gone.safetensors", {}, "gone"),
    "keys of nothing": ({"unet.nothing.lora_A.weight": np.ones((2, 2), np.float32)}, {}, "nothing"),
    "a scale that is no number": ("first", {"scale": "much"}, "scale of first"),
    "an infinite scale": ("first", {"scale": float("inf")}, "scale of first"),
    "a component that is not there": ("first", {"scale": {"text_encoder_9": 1}}, "text_encoder_9"),
    "a name that is taken": ("second", {"name": "third"}, "LoRA third"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(pipe, files, case):
    source, words, named = REFUSED[case]
    if isinstance(source, dict):
        words = {"name": "tensors", **words}
    pipe.load_lora(files["third"], 0.5)
    before = latents(pipe)
    with pytest.raises((LoraError, UsageError, EriError), match=named):
        pipe.load_lora(files.get(source, source) if isinstance(source, str) else source, **words)
    assert pipe.loras == {"third": 0.5}
    np.testing.assert_array_equal(latents(pipe), before)


def test_a_lora_that_overflows_is_named_and_changes_nothing(pipe, plain, files):
    lora = {name: value * 1e30 for name, value in read_tensors(files["first"]).items()}
    with pytest.raises(NonFiniteError, match="denoiser"):
        pipe.load_lora(lora, name="huge")
    assert pipe.loras == {}
    np.testing.assert_array_equal(latents(pipe), plain)


def test_a_lora_of_another_family_is_told(pipe, flux_checkpoint):
    with pytest.raises(UnmatchedKeysError, match="a LoRA for Flux"):
        pipe.load_lora(trained(flux_checkpoint, "transformer."), name="flux")


def test_a_swap_that_fails_in_the_engine_changes_nothing(pipe, plain, files, monkeypatch):
    latents(pipe)
    fail = pytest.MonkeyPatch()
    for executor in pipe._live._executors.values():
        fail.setattr(type(executor), "replace", _refuse)
    with fail.context(), pytest.raises(BackendError, match="no more"):
        pipe.load_lora(files["first"])
    fail.undo()
    assert pipe.loras == {}
    np.testing.assert_array_equal(latents(pipe), plain)


def _refuse(*_):
    raise BackendError("weights", got="no more", expected="a swap")


def test_names_that_are_not_loaded(pipe):
    with pytest.raises(UnknownNameError, match="style"):
        pipe.set_loras({"style": 1.0})
    with pytest.raises(UnknownNameError, match="style"):
        pipe.unload_loras("style")
    with pytest.raises(UsageError, match="name="):
        pipe.load_lora({})


@pytest.mark.parametrize("given", ["FILE", "FILE:0.5", "FILE:-1"])
def test_the_command_line(sdxl_bundle, files, tmp_path, given, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = float(given.partition(":")[2] or 1)
    words = ["--size", "64x48", "--steps", "2", "--guidance", "2", "--seed", "3", "-o", "out.png"]
    lora = given.replace("FILE", str(files["first"]))
    assert main(["generate", str(sdxl_bundle), "a red heart", "--lora", lora, *words]) == 0
    with eri.load(sdxl_bundle) as pipe:
        pipe.load_lora(files["first"], scale)
        expected = pipe(**{**WORDS, "num_inference_steps": 2}, guidance_scale=2.0, seed=3)
    picture = Image.open("out.png")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.images[0]))
    assert f"first: {scale:g}" in picture.text["parameters"]


def test_a_lora_that_fits_in_part_on_the_command_line(
    sdxl_bundle, files, tmp_path, monkeypatch, capsys, caplog
):
    """Refused with the option's name, and with the option drawn as without the strange key."""
    monkeypatch.chdir(tmp_path)
    strange = "lora_unet_nowhere.alpha"
    lora = {**read_tensors(files["first"]), strange: np.float32(1)}
    path = saved(tmp_path / "first.safetensors", {k: np.asarray(v) for k, v in lora.items()})
    words = ["--size", "64x48", "--steps", "2", "--guidance", "2", "--seed", "3", "-o", "out.png"]
    command = ["generate", str(sdxl_bundle), "a red heart", "--lora", str(path), *words]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert strange in said
    assert "--lora-partial" in said
    assert not (tmp_path / "out.png").exists()
    assert main([*command, "--lora-partial"]) == 0
    assert f"1 keys of the LoRA match no weight: '{strange}'" in caplog.text
    with eri.load(sdxl_bundle) as pipe:
        pipe.load_lora(files["first"])
        expected = pipe(**{**WORDS, "num_inference_steps": 2}, guidance_scale=2.0, seed=3)
    np.testing.assert_array_equal(np.asarray(Image.open("out.png")), expected.images[0])


def test_prompts_of_a_file_with_a_lora_in_a_folder(sdxl_bundle, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style").mkdir()
    saved(tmp_path / "style" / "only.safetensors", read_tensors(files["first"]))
    (tmp_path / "prompts.txt").write_text("a red heart\n")
    words = ["--size", "64x48", "--steps", "2", "--guidance", "2", "--seed", "3", "-o", "made"]
    command = ["generate", str(sdxl_bundle), "--prompts", "prompts.txt", "--lora", "style:0.5"]
    assert main([*command, *words]) == 0
    with eri.load(sdxl_bundle) as pipe:
        pipe.load_lora(files["first"], 0.5)
        expected = pipe(**{**WORDS, "num_inference_steps": 2}, guidance_scale=2.0, seed=3)
    (picture,) = (tmp_path / "made").glob("*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), expected.images[0])
