"""`eri generate`: every option is the word of a call."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eri_runtime as eri
from eri_runtime.commands.main import main, make_parser
from eri_runtime.request.option_text import parse_also, parse_interval, parse_limits, parse_sigmas

SIZE = (48, 32)
WORDS = {"width": 48, "height": 32, "num_inference_steps": 3, "seed": 0}


@pytest.fixture
def pictures(tmp_path):
    """A picture and a mask, as files."""
    rng = np.random.default_rng(0)
    picture, mask = tmp_path / "picture.png", tmp_path / "mask.png"
    Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(picture)
    half = np.zeros((32, 48), np.uint8)
    half[:, 20:] = 255
    Image.fromarray(half).save(mask)
    return picture, mask


OPTIONS = {
    "dpmpp_2m --sigmas karras": {"sampler": "dpmpp_2m", "sigmas": "karras"},
    "flow_euler --sigmas 1,0.7,0.2": {"sampler": "flow_euler", "sigmas": [1, 0.7, 0.2]},
    "euler_a --eta 0.5 --option s_noise=1.1": {
        "sampler": "euler_a",
        "eta": 0.5,
        "sampler_options": {"s_noise": 1.1},
    },
    "dpmpp_2m_sde --noise brownian": {"sampler": "dpmpp_2m_sde", "noise": "brownian"},
    "flow_euler --guidance 5 --guidance-rescale 0.5 --guidance-interval 0.1:0.9": {
        "sampler": "flow_euler",
        "guidance_scale": 5.0,
        "guidance_rescale": 0.5,
        "guidance_interval": (0.1, 0.9),
    },
    "flow_euler --bypass-guidance": {"sampler": "flow_euler", "bypass_guidance": True},
    "flow_euler --dynamic-thresholding 1.5:0.9": {
        "sampler": "flow_euler",
        "dynamic_thresholding": (1.5, 0.9),
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_is_a_word(options, sd35_bundle, tmp_path):
    target = tmp_path / "x.png"
    words = ["generate", str(sd35_bundle), "a red heart", "--size", "48x32", "--steps", "3"]
    words += ["--seed", "0", "-o", str(target), "--sampler", *options.split()]
    assert main(words) == 0
    with eri.load(sd35_bundle) as pipe:
        (image,) = pipe("a red heart", **WORDS, **OPTIONS[options]).images
    np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(image))


def test_a_picture_is_painted_on_where_the_mask_is_white(sd35_bundle, tmp_path, pictures):
    picture, mask = pictures
    target, preview = tmp_path / "x.png", tmp_path / "rough.png"
    words = ["generate", str(sd35_bundle), "a red heart", "--also", "snow: thick:0.5"]
    words += ["--image", str(picture), "--mask", str(mask), "--strength", "0.8"]
    words += ["--steps", "4", "--seed", "3", "--preview", str(preview), "-o", str(target)]
    assert main(words) == 0
    with eri.load(sd35_bundle) as pipe, Image.open(picture) as image, Image.open(mask) as white:
        request = {"image": image, "mask": white, "strength": 0.8, "num_inference_steps": 4}
        prompt = {"a red heart": 1.0, "snow: thick": 0.5}
        (reference,) = pipe(prompt, seed=3, **request).images
    with Image.open(target) as made, Image.open(preview) as rough:
        np.testing.assert_array_equal(np.asarray(made), np.asarray(reference))
        assert made.size == rough.size == SIZE
        lines = made.text["parameters"].splitlines()
    assert lines[0] == "a red heart :1 AND snow: thick :0.5"
    assert "Denoising strength: 0.8" in lines[1]


def test_settings_are_written_under_the_names_readers_know(sd35_bundle):
    words = {"sampler": "euler_a", "eta": 0.5, "sampler_options": {"s_noise": 1.1}}
    words |= {"sigmas": "karras", "guidance_scale": [2.0, 3.5], "guidance_interval": (0.1, 0.9)}
    with eri.load(sd35_bundle) as pipe:
        texts = pipe("a, b", num_images_per_prompt=2, **WORDS, **words, output_type="np").parameters
    start = "Steps: 3, Sampler: Euler a, Schedule type: Karras, Eta: 0.5, Sigma noise: 1.1, "
    for text, seed, scale in zip(texts, (0, 1), ("2", "3.5"), strict=True):
        middle = f"CFG scale: {scale}, CFG Interval: 0.1 to 0.9, Seed: {seed}, Size: 48x32, "
        assert text.startswith(f"a, b\n{start}{middle}Model hash: ")


def test_texts_of_options():
    assert parse_sigmas("karras") == "karras"
    assert parse_sigmas("1,.5,0") == [1.0, 0.5, 0.0]
    assert parse_also("a: b:0.25") == ("a: b", 0.25)
    assert parse_also("a cat") == ("a cat", 1.0)
    assert parse_interval(":2.5") == (0.0, 2.5)
    assert parse_interval("0.5:") == (0.5, inf)
    assert parse_limits("2") == (2.0, 0.995)


@pytest.mark.parametrize(
    "option",
    [
        ["--sigmas", "1,b"],
        ["--option", "s_churn"],
        ["--option", "s_churn=much"],
        ["--also", "a:b"],
        ["--guidance-interval", "3"],
        ["--guidance-interval", "a:b"],
        ["--dynamic-thresholding", "x"],
        ["--dynamic-thresholding", "1:x"],
    ],
)
def test_a_text_that_cannot_be_read_is_bad_use(option, capsys):
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(["generate", "bundle", "prompt", *option])
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--image", "--mask"])
@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(name, content, sd35_bundle, tmp_path, capsys):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    assert main(["generate", str(sd35_bundle), "x", name, str(path), "--steps", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"eri: {name}: got ")


def parsed(*words):
    return make_parser().parse_args(["generate", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["BUNDLE", "--steps", "2", "a fox", "--seed", "1"],
        ["--steps", "2", "BUNDLE", "--seed", "1", "a fox"],
        ["BUNDLE", "a fox", "--steps", "2", "--seed", "1"],
        ["BUNDLE", "--steps", "2", "--seed", "1", "--", "a fox"],
    ],
)
def test_options_may_stand_between_bundle_and_prompt(words):
    options = parsed(*words)
    assert (options.bundle, options.prompt, options.steps, options.seed) == (
        "BUNDLE",
        "a fox",
        2,
        1,
    )


def test_a_word_too_many_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("BUNDLE", "a", "--steps", "2", "fox")
    assert "unexpected 'fox'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        (["f.safetensors:.5", "f.safetensors:.25"], "--lora: got f.safetensors twice"),
        (["a/f.safetensors", "b/f.safetensors"], "a/f.safetensors and b/f.safetensors"),
    ],
)
def test_two_loras_of_one_name_are_refused(
    loras, message, sd35_bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for path in ("a/f.safetensors", "b/f.safetensors", "f.safetensors"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    words = [word for lora in loras for word in ("--lora", lora)]
    assert main(["generate", str(sd35_bundle), *words, "a fox"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "expected one LoRA named 'f'" in error


@pytest.mark.parametrize("option", ["-o", "--preview"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder.png", "expected a file"),
        ("file/x.png", "expected a place where a PNG can be written"),
        ("x" * 252 + ".png", "a name of 256 bytes"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_first_step(
    name, message, option, sd35_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(eri.Pipeline, "denoise", None)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["generate", str(sd35_bundle), "a fox", option, name]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_the_longest_name_is_written(sd35_bundle, tmp_path):
    target = tmp_path / ("x" * 251 + ".png")
    words = ["--steps", "1", "--size", "48x32", "-o", str(target)]
    assert main(["generate", str(sd35_bundle), "a fox", *words]) == 0
    assert list(tmp_path.iterdir()) == [target]
    result = eri.Result([Image.new("RGB", (2, 2))], np.zeros(1, np.float32), (0,), ("a fox",))
    with pytest.raises(eri.errors.UsageError, match="path: got the folder"):
        result.save(tmp_path)
