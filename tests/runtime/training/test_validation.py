"""Validation while training: the same prompts and seeds at every step, saved and shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import eri_runtime as eri
from eri_runtime.errors import (
    BackendError,
    EriError,
    NonFiniteError,
    SizeError,
    UnknownNameError,
    UsageError,
)
from eri_runtime.pipeline.pipeline import Pipeline
from eri_runtime.request.configs import SamplingConfig
from eri_runtime.training import validation
from eri_runtime.training.loggers import Sample, log_pictures
from eri_runtime.training.validation import generate_validation_samples

PROMPTS = ["a red heart", "ein Apfel, rot", "心"]


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with eri.load(sd35_bundle) as pipe:
        yield pipe


@pytest.fixture(autouse=True)
def its_own_weights(pipe):
    yield
    pipe.reset_weights()


@pytest.fixture
def config(tmp_path):
    return SamplingConfig(2, 4.0, 64, 64, seed=5, output_dir=tmp_path / "out")


@pytest.fixture
def runs(pipe, monkeypatch):
    """The components that are run, in turn."""
    seen, run = [], pipe._live.executor

    def executor(name):
        seen.append(name)
        return run(name)

    monkeypatch.setattr(pipe._live, "executor", executor)
    return seen


def pixels(paths):
    return [np.asarray(Image.open(path)).astype(int) for path in paths]


def assert_near(mine, theirs, most=1):
    """8-bit pictures that differ by rounding only."""
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a - b).max() <= most


def encoded(runs):
    return [name for name in runs if name.startswith("text_encoder")]


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_pictures_are_those_of_a_call_of_the_same_seeds(request, family, config):
    with eri.load(request.getfixturevalue(f"{family}_bundle")) as pipe:
        paths = generate_validation_samples(pipe, PROMPTS, config, 30, model_type=family)
        theirs = pipe(PROMPTS, config=config)
    assert [path.name for path in paths] == [
        f"{family}_step00000030_{i:03d}_{slug}.png"
        for i, slug in enumerate(["a-red-heart", "ein-apfel-rot", "082c4ae7"])
    ]
    assert_near(pixels(paths), [np.asarray(image).astype(int) for image in theirs.images])
    for path, expected in zip(paths, theirs.parameters, strict=True):
        with Image.open(path) as image:
            assert image.text["parameters"] == f"{expected}, Training step: 30"


def test_a_picture_depends_on_its_index_alone(pipe, config, monkeypatch):
    many = generate_validation_samples(pipe, PROMPTS, config, 0)
    one = generate_validation_samples(pipe, PROMPTS[0], config, 100)
    assert_near(pixels(many[:1]), pixels(one))
    sizes = []
    monkeypatch.setattr(validation, "images_at_once", lambda _: eri.ShapeRange(min=1, opt=1, max=2))
    call = Pipeline.__call__
    monkeypatch.setattr(
        Pipeline, "__call__", lambda self, **w: sizes.append(len(w["seed"])) or call(self, **w)
    )
    pieces = generate_validation_samples(pipe, PROMPTS, config, 200)
    assert sizes == [2, 1]
    assert_near(pixels(many), pixels(pieces))
    assert len(set(many + one + pieces)) == 7


def test_no_seed_is_the_same_seed_at_every_step(pipe, config):
    unseeded = replace(config, seed=None)
    first = generate_validation_samples(pipe, PROMPTS, unseeded, 0)
    again = generate_validation_samples(pipe, PROMPTS, unseeded, 1)
    assert_near(pixels(first), pixels(again), most=0)
    zero = generate_validation_samples(pipe, PROMPTS, replace(config, seed=0), 2)
    assert_near(pixels(first), pixels(zero), most=0)


def test_a_prompt_is_encoded_once(pipe, config, runs):
    prompts = ["a prompt of this test", "another", "another"]
    generate_validation_samples(pipe, prompts, config, 0)
    assert sorted(set(encoded(runs))) == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert len(encoded(runs)) in (6, 9)  # the empty prompt may be known
    first = len(encoded(runs))
    generate_validation_samples(pipe, prompts, config, 1)
    generate_validation_samples(pipe, prompts[::-1], replace(config, guidance_scale=1.0), 2)
    assert len(encoded(runs)) == first
    generate_validation_samples(pipe, ["a third", *prompts], config, 3)
    assert len(encoded(runs)) == first + 3


def test_new_weights_of_a_text_encoder_are_seen(pipe, config, runs):
    before = generate_validation_samples(pipe, PROMPTS, config, 0)
    name = "text_model.final_layer_norm.weight"
    tensors = pipe._live.stored("text_encoder_2")
    matrix = next(key for key in tensors if key.endswith("q_proj.weight"))
    assert name in tensors
    change = {key: 3 * np.asarray(tensors[key], np.float32) for key in (name, matrix)}
    pipe.update_weights(change, component="text_encoder_2")
    runs.clear()
    after = generate_validation_samples(pipe, PROMPTS, config, 1)
    assert len(encoded(runs)) == 3 * 4
    expected = pipe(PROMPTS, config=config).images
    assert_near(pixels(after), [np.asarray(image).astype(int) for image in expected])
    assert max(np.abs(a - b).max() for a, b in zip(pixels(before), pixels(after), strict=True)) > 1
    pipe.reset_weights()
    assert_near(pixels(generate_validation_samples(pipe, PROMPTS, config, 2)), pixels(before))


def test_new_weights_of_the_denoiser_encode_nothing_anew(pipe, config, runs):
    before = generate_validation_samples(pipe, PROMPTS, config, 0)
    tensors = pipe._live.stored("denoiser")
    scaled = {"proj_out.weight": 2 * np.asarray(tensors["proj_out.weight"], np.float32)}
    pipe.update_weights(scaled)
    runs.clear()
    after = generate_validation_samples(pipe, PROMPTS, config, 1)
    assert not encoded(runs)
    assert max(np.abs(a - b).max() for a, b in zip(pixels(before), pixels(after), strict=True)) > 1


@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_embeddings_stand_for_prompts(pipe, config, runs, kind):
    condition = pipe.encode_prompt(PROMPTS)
    empty = pipe.encode_prompt("")
    expected = generate_validation_samples(pipe, PROMPTS, config, 0)
    runs.clear()
    make = {
        "numpy": lambda a: a,
        "torch": lambda a: torch.from_numpy(a).requires_grad_(),
        "bfloat16": lambda a: torch.from_numpy(a).bfloat16(),
    }[kind]
    paths = generate_validation_samples(
        pipe,
        PROMPTS,
        config,
        1,
        text_embeddings=make(condition.embeds),
        pooled_embeddings=make(condition.pooled),
        negative_prompt_embeds=make(empty.embeds),
        negative_pooled_prompt_embeds=make(empty.pooled),
    )
    assert not encoded(runs)
    assert_near(pixels(paths), pixels(expected), most=8 if kind == "bfloat16" else 1)


def test_a_bundle_without_encoders_takes_embeddings(pipe, config):
    condition, empty = pipe.encode_prompt(PROMPTS), pipe.encode_prompt("")
    embeddings = {"text_embeddings": condition.embeds, "pooled_embeddings": condition.pooled}
    names = [each for each in pipe.bundle.components if not each.startswith("text_encoder")]
    without = replace(
        pipe.bundle,
        components={each: pipe.bundle.components[each] for each in names},
        tokenizers={},
    )
    expected = generate_validation_samples(pipe, PROMPTS, config, 0)
    bare = Pipeline(without, lambda name, _: pipe._live.executor(name))  # which owns them
    negative = {
        "negative_prompt_embeds": empty.embeds,
        "negative_pooled_prompt_embeds": empty.pooled,
    }
    paths = generate_validation_samples(bare, PROMPTS, config, 1, **embeddings, **negative)
    assert_near(pixels(paths), pixels(expected))
    unguided = replace(config, guidance_scale=1.0)
    assert generate_validation_samples(bare, PROMPTS, unguided, 2, **embeddings)
    with pytest.raises(UsageError, match=r"^negative_prompt: got a bundle without"):
        generate_validation_samples(bare, PROMPTS, config, 3, **embeddings)
    with pytest.raises(UsageError, match=r"^prompt: got a bundle without"):
        generate_validation_samples(bare, PROMPTS, unguided, 4)


def test_words_of_a_call_are_taken(pipe, config):
    paths = generate_validation_samples(
        pipe, PROMPTS, config, 0, sampler="flow_heun", sigmas="karras"
    )
    theirs = pipe(PROMPTS, config=config, sampler="flow_heun", sigmas="karras").images
    assert_near(pixels(paths), [np.asarray(image).astype(int) for image in theirs])


# loggers


def test_tensorboard_shows_the_files_step_by_step(pipe, config, tmp_path):
    with SummaryWriter(tmp_path / "board") as writer:
        made = {
            step: generate_validation_samples(pipe, PROMPTS, config, step, loggers=[writer])
            for step in (0, 50)
        }
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [
        "sd35/000_a-red-heart",
        "sd35/001_ein-apfel-rot",
        "sd35/002_082c4ae7",
    ]
    for i, tag in enumerate(events.Tags()["images"]):
        assert [event.step for event in events.Images(tag)] == [0, 50]
        for event in events.Images(tag):
            (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
            assert_near(pixels([tmp_path / "shown.png"]), pixels([made[event.step][i]]), most=0)


def test_wandb_keeps_the_files_with_their_prompts(pipe, config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    run = wandb.init(mode="offline", dir=tmp_path, project="validation", settings=settings)
    logged, log = [], run.log
    monkeypatch.setattr(run, "log", lambda data, step: logged.append(data) or log(data, step=step))
    paths = generate_validation_samples(pipe, PROMPTS, config, 7, name="ema", loggers=[run])
    folder = Path(run.dir)
    run.finish()
    kept = {path.read_bytes() for path in folder.rglob("*.png")}
    assert kept == {path.read_bytes() for path in paths}
    (data,) = logged
    assert next(iter(data)) == "ema/000_a-red-heart"
    assert [image._caption for image in data.values()] == PROMPTS


class Own:
    """The logger of the Rust API's documentation."""

    def __init__(self):
        self.seen = []

    def log_image(self, path, step):
        assert path.stat().st_size > 100
        self.seen.append((path, step))


def test_any_object_with_log_image_is_told(pipe, config):
    first, second = Own(), Own()
    paths = generate_validation_samples(pipe, PROMPTS, config, 9, loggers=[first, second])
    assert first.seen == second.seen == [(path, 9) for path in paths]


def test_a_grey_picture_is_shown(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (6, 4), 100).save(path)
    with SummaryWriter(tmp_path / "board") as writer:
        log_pictures(writer, [Sample("a/0", path, "x")], 3)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    (event,) = events.Images("a/0")
    assert (event.width, event.height, event.step) == (6, 4, 3)


def test_a_run_without_wandb_says_so(pipe, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = type("Run", (), {"log": print})()
    with pytest.raises(BackendError, match="pip install wandb"):
        generate_validation_samples(pipe, PROMPTS, config, 0, loggers=[run])
    assert not config.output_dir.exists()


# what is refused

BAD = [
    ({"pipe": "engines/demo"}, UsageError, "^pipe: got 'engines/demo'.*eri_runtime.load"),
    ({"prompts": []}, UsageError, r"^prompts: got \[\]"),
    ({"prompts": [1]}, UsageError, "^prompts"),
    ({"prompts": None}, UsageError, "^prompts"),
    ({"config": {}}, UsageError, "^config"),
    ({"config": SamplingConfig()}, SizeError, "^height: got 1024"),
    ({"step": -1}, UsageError, "^step"),
    ({"step": True}, UsageError, "^step"),
    ({"model_type": "sdxl"}, UsageError, "^model_type: got 'sdxl', expected 'sd35', the bundle's"),
    ({"name": 3}, UsageError, "^name"),
    ({"loggers": [object()]}, UsageError, "^loggers: .*log_image.*add_image"),
    ({"loggers": [None]}, UsageError, "^loggers"),
    ({"num_images_per_prompt": 2}, UnknownNameError, "num_images_per_prompt"),
    ({"sampler": "oiler"}, UnknownNameError, "oiler"),
    ({"text_embeddings": np.zeros((3, 8, 8))}, UsageError, "^pooled_embeddings: got None"),
    (
        {"text_embeddings": np.zeros((2, 8, 8)), "pooled_embeddings": np.zeros((3, 8))},
        SizeError,
        "with B 3",
    ),
    (
        {"text_embeddings": np.zeros((3, 8)), "pooled_embeddings": np.zeros((3, 8))},
        SizeError,
        r"\(B, T, D\)",
    ),
    (
        {"text_embeddings": np.full((3, 8, 8), np.nan), "pooled_embeddings": np.zeros((3, 8))},
        NonFiniteError,
        "text_embeddings",
    ),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD)
def test_a_bad_argument_is_refused_before_anything_is_drawn(pipe, config, changed, error, match):
    words = {"pipe": pipe, "prompts": PROMPTS, "config": config, "step": 0, **changed}
    with pytest.raises(error, match=match) as caught:
        generate_validation_samples(**words)
    assert isinstance(caught.value, EriError)
    assert not config.output_dir.exists()


def test_training_that_diverged_is_an_error_and_no_black_picture(pipe, config):
    shape = pipe._live.stored("denoiser")["proj_out.weight"].shape
    pipe.update_weights({"proj_out.weight": np.full(shape, 3e38, np.float32)})
    with pytest.raises(NonFiniteError):
        generate_validation_samples(pipe, PROMPTS, config, 0)
    assert not config.output_dir.exists()
