"""Images, masks and strengths that cannot be: each is an error that names the word."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import eri_runtime as eri
from eri_runtime.errors import SizeError, UsageError

HEIGHT, WIDTH = 48, 80
PROMPTS = ["a red heart", "two black cats and one white dog"]


def picture(mode="RGB", height=HEIGHT, width=WIDTH):
    return Image.new(mode, (width, height))


def floats(value=0.5):
    """Pixels, all of one value."""
    return np.full((HEIGHT, WIDTH, 3), value, np.float32)


HOSTILE = [
    ("strength", {"strength": 0}),
    ("strength", {"strength": 1.5}),
    ("strength", {"strength": -0.5}),
    ("strength", {"strength": float("nan")}),
    ("strength", {"strength": "0.5"}),
    ("strength", {"strength": 0.5, "image": None}),
    ("mask", {"mask": picture("L"), "image": None}),
    ("mask", {"mask": picture("L", width=WIDTH - 2)}),
    ("mask", {"mask": np.ones((HEIGHT, WIDTH, 3), np.uint8)}),
    ("mask", {"mask": np.full((HEIGHT, WIDTH), np.nan)}),
    ("mask", {"mask": np.full((HEIGHT, WIDTH), 2.0)}),
    ("mask", {"mask": [picture("L")] * 3}),
    ("mask", {"mask": object()}),
    ("image", {"image": floats()[:-2]}),
    ("image", {"image": floats()[..., :2]}),
    ("image", {"image": floats()[..., 0]}),
    ("image", {"image": floats().transpose(2, 0, 1)}),
    ("image", {"image": floats().astype(np.int64)}),
    ("image", {"image": floats().astype(np.complex64)}),
    ("image", {"image": floats(1.5)}),
    ("image", {"image": floats(-0.1)}),
    ("image", {"image": floats(np.nan)}),
    ("image", {"image": floats(np.inf)}),
    ("image", {"image": []}),
    ("image", {"image": [picture()] * 3}),
    ("image", {"image": "heart.png"}),
    ("image", {"image": 3.5}),
    ("image", {"image": [None, None]}),
    ("image", {"image": picture("I;16")}),
    ("image", {"image": picture("F")}),
    ("mask", {"mask": picture("I")}),
    ("mask", {"mask": picture("L"), "mask_image": picture("L")}),
]


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with eri.load(sd35_bundle) as pipe:
        yield pipe


@pytest.mark.parametrize(("word", "words"), HOSTILE)
def test_what_cannot_be_edited_is_refused(pipe, word, words):
    size = {"height": HEIGHT, "width": WIDTH}
    with pytest.raises(UsageError, match=rf"^{word}\b"):
        pipe.request(PROMPTS, **{"image": picture(), **size, **words})


def test_a_file_that_breaks_off_is_refused(pipe):
    file = BytesIO()
    Image.effect_noise((WIDTH, HEIGHT), 50).save(file, "PNG")
    broken = Image.open(BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    with pytest.raises(UsageError, match=r"^image: got .*truncated"):
        pipe.request("a red heart", image=broken)


def test_the_words_are_fine_without_what_is_wrong_with_them(pipe):
    request = pipe.request(PROMPTS, image=picture(), mask=picture("L"), strength=0.5)
    assert (request.height, request.width) == (HEIGHT, WIDTH)


def test_an_image_that_is_too_small_for_the_networks_is_refused(pipe):
    with pytest.raises(SizeError, match="height"):
        pipe.request(PROMPTS, image=picture(height=4, width=4))


# SDXL keeps int(steps·strength) of the steps, which may be none; a flow keeps one as a rule
NOTHING_LEFT = [("sdxl", 1, 0.3), ("sdxl", 3, 0.3), ("sd35", 3, 1e-20)]


@pytest.mark.parametrize(("family", "steps", "strength"), NOTHING_LEFT)
def test_a_strength_that_leaves_no_step_is_refused(request, family, steps, strength):
    with eri.load(request.getfixturevalue(f"{family}_bundle")) as pipe:
        words = {"image": picture(), "strength": strength, "num_inference_steps": steps}
        with pytest.raises(
            UsageError, match=rf"^strength: .*of {steps} steps.*num_inference_steps"
        ):
            pipe(PROMPTS[0], **words)
