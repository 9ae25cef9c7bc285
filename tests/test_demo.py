"""The embedded checkpoint: what `eri demo` draws is what it was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

import eri_runtime as eri
from eri_export.cli import GUIDANCE, PROMPTS
from eri_export.embedded import checkpoint
from eri_export.embedded.data import captions, chosen_names
from eri_export.embedded.retrieval import nearest_vectors, shrink
from eri_runtime.cli import main
from eri_runtime.errors import EriError

THUMBNAILS = Path(__file__).parent / "data" / "emoji-24px.png"
CAPTIONS = [captions(name)[0] for name in chosen_names()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder in which `eri demo` was run."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["demo"]) == 0
    return folder


def nearest_captions(images):
    """The caption of the training image nearest to each (N, 96, 96, 3) uint8 image."""
    training = np.asarray(Image.open(THUMBNAILS), dtype=np.float64).reshape(-1, 24, 24, 3)
    assert len(training) == len(CAPTIONS)
    shrunk = shrink("generated", np.stack([np.asarray(image) for image in images]), 4)
    return [CAPTIONS[i] for i in nearest_vectors(shrunk, training).nearest]


def test_the_checkpoint_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in checkpoint().rglob("*")) <= 12_000_000


def test_a_family_without_a_checkpoint_is_named():
    with pytest.raises(EriError, match=r"'sdxl'.*sd35"):
        checkpoint("sdxl")


def test_the_contact_sheet_shows_the_prompts(demo):
    assert set(PROMPTS) <= set(CAPTIONS)
    with Image.open(demo / "out" / "demo.png") as sheet:
        assert sheet.text["parameters"].startswith(", ".join(PROMPTS))
        assert sheet.size == (4 * 200 + 8, 2 * 200 + 8)
        half = np.asarray(sheet.resize((404, 204), Image.Resampling.BOX))
    images = [
        half[4 + row * 100 : 100 + row * 100, 4 + column * 100 : 100 + column * 100]
        for row in range(2)
        for column in range(4)
    ]
    assert nearest_captions(images) == list(PROMPTS)


def test_other_captions_other_seeds_and_few_steps_are_right_too(demo):
    prompts = CAPTIONS[5:236:33]
    with eri.load(demo / "engines" / "demo") as pipe:
        result = pipe(prompts, seed=100, num_inference_steps=12, guidance_scale=GUIDANCE)
    assert nearest_captions(result.images) == prompts


def test_the_readmes_examples_run(demo, monkeypatch):
    monkeypatch.chdir(demo)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(others) == 2
    half = np.zeros((96, 96), np.uint8)
    half[:, 48:] = 255
    names: dict[str, object] = {"white_where_to_paint": Image.fromarray(half)}
    exec(first, names)  # noqa: S102 our own text
    with Image.open("heart.png") as image:
        assert nearest_captions([np.asarray(image)]) == ["a red heart"]
        assert "Steps: 20" in image.text["parameters"]
        names["picture"] = image.copy()
    with eri.load("engines/demo") as names["pipe"]:
        for example in others:
            exec(example, names)  # noqa: S102
    last = names["image"]
    assert isinstance(last, Image.Image)
    assert nearest_captions([np.asarray(last)]) == ["a red heart"]
    with Image.open("now.png") as preview:
        assert preview.size == last.size


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
