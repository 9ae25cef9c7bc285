"""The embedded checkpoint: what `eri demo` draws is what it was asked for."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image

import eri_runtime as eri
from benchmarks.validation_run import read_back, train_and_validate
from eri_export.commands.demo import GUIDANCE, PROMPTS
from eri_export.embedded import checkpoint, lora, train_denoiser, training_loop, training_pictures
from eri_export.embedded.retrieval import nearest_vectors, shrink
from eri_runtime.errors import EriError
from tests.docs.pages import README, ROOT, run_python
from tests.support.emoji import CAPTIONS, THUMBNAILS, nearest_captions, sheet_images


def test_the_checkpoint_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in checkpoint().rglob("*")) <= 12_000_000


def test_a_family_without_a_checkpoint_is_named():
    with pytest.raises(EriError, match=r"'sd15'.*sd35"):
        checkpoint("sd15")


def test_the_contact_sheet_shows_the_prompts(demo):
    assert set(PROMPTS) <= set(CAPTIONS)
    with Image.open(demo / "out" / "demo.png") as sheet:
        assert sheet.text["parameters"].startswith(", ".join(PROMPTS))
        images = sheet_images(sheet)
    assert nearest_captions(images) == list(PROMPTS)


def test_other_captions_other_seeds_and_few_steps_are_right_too(demo):
    prompts = CAPTIONS[5:236:33]
    with eri.load(demo / "engines" / "demo") as pipe:
        result = pipe(prompts, seed=100, num_inference_steps=12, guidance_scale=GUIDANCE)
    assert nearest_captions(result.images) == prompts


class Heard:
    """A logger of one's own: the first word of each file's name, and the step."""

    def __init__(self):
        self.heard = []

    def log_image(self, path, step):
        self.heard.append((path.stem.partition("_")[0], step))


def test_the_readmes_example_draws_what_it_says(demo, monkeypatch):
    monkeypatch.chdir(demo)
    run_python(README, {})
    with Image.open("heart.png") as image:
        assert nearest_captions([np.asarray(image)]) == ["a red heart"]
        assert "Steps: 20" in image.text["parameters"]


def test_the_guides_examples_run_with_a_real_model(demo, monkeypatch):
    """Every page runs on tiny bundles in `tests/docs`; of these two the pictures are looked at."""
    monkeypatch.chdir(demo)
    shutil.copyfile(lora(), "style.safetensors")
    names: dict[str, object] = {}
    run_python(ROOT / "docs/guides/generate.md", names)
    names["pipe"].close()
    assert nearest_captions([np.asarray(names["image"])]) == ["a red heart"]
    with Image.open("now.png") as preview:
        assert preview.size == names["image"].size
    model = SD3Transformer2DModel.from_pretrained(checkpoint() / "transformer")
    names = {"model": model, "ema": model, "done": 100, "writer": Heard()}
    run_python(ROOT / "docs/guides/training.md", names)
    names["pipe"].close()
    assert names["writer"].heard == [("raw", 100)] * 2 + [("ema", 100)] * 2


def test_a_preview_is_the_picture_in_small(demo):
    """Correlation with the picture's squares is 0.98 to 0.99, and 0.77 at most when transposed."""
    with eri.load(demo / "engines" / "demo") as pipe:
        words = {"num_inference_steps": 12, "guidance_scale": GUIDANCE, "seed": 0}
        request = pipe.request(["a rocket", "a pizza"], **words)
        *_, last = pipe.denoise(request)
        seen, pictures = pipe.preview(request, last), pipe.finish(request, last.denoised).images
    factor = pipe.bundle.latents.factor
    for preview, picture in zip(seen, pictures, strict=True):
        small = [np.asarray(image.reduce(factor), np.float64) for image in (preview, picture)]
        assert small[0].shape == (96 // factor, 96 // factor, 3)
        assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] >= 0.95
        turned = small[0].transpose(1, 0, 2)
        assert np.corrcoef(turned.ravel(), small[1].ravel())[0, 1] < 0.9


def test_the_images_are_diffusers_images(demo):
    theirs = StableDiffusion3Pipeline.from_pretrained(checkpoint(), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    words = {"num_inference_steps": 8, "guidance_scale": GUIDANCE, "max_sequence_length": 16}
    words |= {"prompt": ["a pizza", "an octopus"], "height": 96, "width": 96, "output_type": "np"}
    seeds = [5, 2**33]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    theirs_pixels = theirs(**words, generator=generators).images
    with eri.load(demo / "engines" / "demo") as ours:
        assert np.abs(ours(**words, seed=seeds).images - theirs_pixels).max() <= 1 / 255


def test_training_shows_its_pictures_getting_better(demo, tmp_path, monkeypatch):
    """Raw and averaged weights of a spoilt denoiser that learns, in an open pipeline."""
    bundle, names = demo / "engines" / "demo", ["red heart", "rocket"]
    # a clock that a busy machine does not slow down: every step takes a seventieth of the run
    clock = count(0, 60 * 0.2 / 70)
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=partial(next, clock)))
    report, images = train_and_validate(
        bundle, tmp_path, names, noise=0.25, minutes=0.2, every=10**6
    )
    assert 70 <= report["steps"] <= 71
    assert len(images) == 6
    for kind in ("raw", "ema"):
        first, last = report[kind]["rms"].values()
        assert last < 0.7 * first, report
        assert list(report[kind]["nearest"].values())[-1] == 2
        assert len(list((tmp_path / "watch" / kind).iterdir())) == 4


def test_the_training_script_logs_every_so_many_steps(demo, tmp_path):
    watched = tmp_path / "watch"
    watched.mkdir()
    (watched / "bundle").symlink_to(demo / "engines" / "demo")
    images = torch.rand(len(CAPTIONS), 3, 96, 96) * 2 - 1
    train_denoiser.train_denoiser(tmp_path, images, minutes=0.001, every=1)
    logged = read_back(watched / "events")
    assert list(logged) == ["ema", "raw"]
    for steps in logged.values():
        assert list(steps) == list(range(len(steps)))
        assert len(steps) >= 2
        for drawn in steps.values():
            assert drawn.shape == (len(training_pictures.PROMPTS), 96, 96, 3)


def test_the_blue_ink_lora_paints_the_same_things_blue(demo):
    """Against diffusers with the same file; at scale 0 it is not there."""
    prompts, seeds = ["a red heart", "a pizza", "a rocket", "an octopus"], [0, 1, 2, 3]
    words = {"num_inference_steps": 12, "guidance_scale": GUIDANCE, "max_sequence_length": 16}
    words |= {"prompt": prompts, "height": 96, "width": 96, "output_type": "np"}
    theirs = StableDiffusion3Pipeline.from_pretrained(checkpoint(), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(lora().parent, weight_name=lora().name)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    expected = theirs(**words, generator=generators).images
    with eri.load(demo / "engines" / "demo") as pipe:
        plain = pipe(**words, seed=seeds).images
        pipe.load_lora(lora(), 0.0)
        np.testing.assert_array_equal(pipe(**words, seed=seeds).images, plain)
        pipe.unload_loras()
        pipe.load_lora(lora(), 1.0)
        blue = pipe(**words, seed=seeds).images
    assert np.abs(blue - expected).max() <= 8 / 255  # merged into float16 weights
    subject = plain.min(axis=-1) < 0.8
    for kind, sign in ((plain, 1), (blue, -1)):
        assert sign * (kind[..., 0] - kind[..., 2])[subject].mean() > 0.1
    grey = np.asarray(Image.open(THUMBNAILS).convert("L"), np.float64).reshape(-1, 24, 24)
    drawn = np.round(blue.mean(axis=-1, keepdims=True).repeat(3, -1) * 255).astype(np.uint8)
    squares = shrink("generated", drawn, 4)[..., 0]
    found = [CAPTIONS[i] for i in nearest_vectors(standard(squares), standard(grey)).nearest]
    assert sum(a == b for a, b in zip(found, prompts, strict=True)) >= 3, found


def standard(images):
    """(N, h, w) of mean 0 and deviation 1 each: what is drawn, not how light."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return centred / centred.std(axis=(1, 2), keepdims=True)
