"""`overlay` and `padding_mask_crop` keep pixels and give diffusers' pictures."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FluxInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image, ImageFilter

import eri_runtime as eri
from eri_runtime.commands.main import main
from eri_runtime.errors import UsageError
from eri_runtime.request import image_to_image
from tests.support.diffusers_pipelines import (
    CALLS,
    PIXEL_TOLERANCE,
    PROMPTS,
    generators,
    load,
)

INPAINT = {"sdxl": StableDiffusionXLInpaintPipeline, "flux": FluxInpaintPipeline}
HEIGHT, WIDTH = 48, 80  # of what is generated
TALL, WIDE = 109, 131  # of the picture
WORDS = {"num_inference_steps": 3, "strength": 0.6}
SEED = 7


def picture(width=WIDE, height=TALL):
    """A picture of soft coloured blots with a grain."""
    rng = np.random.default_rng(0)
    blots = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    soft = np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray(np.clip(soft + rng.integers(-9, 10, soft.shape), 0, 255).astype("uint8"))


def blurred(width=WIDE, height=TALL, box=(61, 30, 90, 71)):
    """A mask with a soft edge."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask.filter(ImageFilter.GaussianBlur(2))


@pytest.fixture(scope="module", params=INPAINT)
def pair(request):
    """The family, our pipeline, and diffusers' for inpainting over the same checkpoint."""
    text_to_image, bundle = load(request, request.param)
    theirs = INPAINT[request.param](**text_to_image.components)
    theirs.set_progress_bar_config(disable=True)
    with eri.load(bundle) as ours:
        yield request.param, ours, theirs


def both(pair, mask, **words):
    """Our picture and diffusers', as integers (H, W, 3)."""
    family, ours, theirs = pair
    size = {"height": HEIGHT, "width": WIDTH}
    words = {"image": picture(), "mask_image": mask, **size, **WORDS, **CALLS[family][1], **words}
    expected = theirs(PROMPTS[0], generator=generators([SEED]), **words).images
    made = ours(PROMPTS[0], seed=SEED, **words).images
    return [np.asarray(image[0], np.int64) for image in (made, expected)]


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE * 255


CROPS = {
    "in its middle": (61, 30, 90, 71),
    "at its edge": (100, 2, 131, 9),
    "all of it": (0, 0, WIDE, TALL),
}


@pytest.mark.parametrize("padding", [0, 12])
@pytest.mark.parametrize("where", CROPS)
def test_a_crop_is_painted_as_in_diffusers(pair, where, padding):
    mask = blurred(box=CROPS[where])
    ours, theirs = both(pair, mask, padding_mask_crop=padding)
    assert_close(ours, theirs)
    original, black = np.asarray(picture()), np.asarray(mask) == 0
    np.testing.assert_array_equal(ours[black], original[black])
    assert np.abs(ours - original).max() > 30, "something must be painted"


def test_an_overlay_is_as_diffusers_applies_it(pair):
    _, ours, theirs = pair
    mask, image = blurred(WIDTH, HEIGHT, (21, 9, 50, 30)), picture(WIDTH, HEIGHT)
    without = both(pair, mask, image=image)
    applied = theirs.image_processor.apply_overlay(
        mask, image, Image.fromarray(without[1].astype(np.uint8))
    )
    words = {"image": image, "mask": mask, **WORDS, **CALLS[pair[0]][1], "seed": SEED}
    kept = ours(PROMPTS[0], overlay=True, **words).images[0]
    assert_close(np.asarray(kept, np.int64), np.asarray(applied, np.int64))
    black = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(kept)[black], np.asarray(image)[black])
    assert (without[0][black] != np.asarray(image)[black]).any(), "the VAE must change pixels"


# without diffusers


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with eri.load(sd35_bundle, "cpu") as pipe:
        yield pipe


FAST = {"seed": 0, "num_inference_steps": 2, "strength": 0.5}


def test_arrays_are_cropped_as_pictures_are(pipe):
    image, mask = picture(), blurred()
    words = {"padding_mask_crop": 4, "height": 32, "width": 48, **FAST}
    (reference,) = pipe("x", image=image, mask=mask, **words).images
    assert reference.size == (WIDE, TALL)
    pixels, grey = np.asarray(image), np.asarray(mask)
    floats = pixels.astype(np.float32) / np.float32(255), grey.astype(np.float32) / np.float32(255)
    for pair in ((pixels, grey), floats):
        for kind in ("pil", "np"):
            (made,) = pipe("x", image=pair[0], mask=pair[1], output_type=kind, **words).images
            made = np.asarray(made) if kind == "pil" else np.round(made * 255)
            np.testing.assert_array_equal(made, np.asarray(reference))


def test_every_image_has_its_own_overlay(pipe):
    images = [picture(48, 32), picture(48, 32).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    masks = [blurred(48, 32, (5, 5, 20, 20)), blurred(48, 32, (25, 9, 40, 30))]
    made = pipe(PROMPTS, image=images, mask=masks, overlay=True, output_type="np", **FAST).images
    for ours, image, mask in zip(made, images, masks, strict=True):
        black = np.asarray(mask) == 0
        exact = np.asarray(image)[black].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(ours[black], exact)


def test_a_crop_has_the_bundles_size_and_says_so(pipe):
    words = {"image": picture(), "mask": blurred(), "padding_mask_crop": 4, **FAST}
    request = pipe.request("x", **words)
    assert (request.height, request.width) == (
        pipe.bundle.defaults.height,
        pipe.bundle.defaults.width,
    )
    text = pipe("x", num_images_per_prompt=2, **words).parameters[1]
    assert "Inpaint area: Only masked, Masked area padding: 4" in text


WHITE, BLACK = Image.new("L", (48, 32), 255), Image.new("L", (48, 32), 127)
REFUSED = [
    ("overlay: got no mask", {"overlay": True, "mask": None}),
    ("padding_mask_crop: got no mask", {"padding_mask_crop": 1, "mask": None}),
    ("overlay: got no mask", {"overlay": True, "mask": None, "image": None}),
    ("overlay: got 2, expected True", {"overlay": 2}),
    ("overlay: got False with padding", {"overlay": False, "padding_mask_crop": 1}),
    ("padding_mask_crop: got -1, expected", {"padding_mask_crop": -1}),
    ("padding_mask_crop: got 1.5, expected", {"padding_mask_crop": 1.5}),
    ("padding_mask_crop: got True, expected", {"padding_mask_crop": True}),
    ("mask: got a mask without white", {"overlay": True, "mask": BLACK}),
    ("mask: got a mask without white", {"padding_mask_crop": 1, "mask": BLACK}),
    ("mask: got a mask without white", {"overlay": True, "mask": [WHITE, BLACK]}),
    ("mask: got 2 of them", {"padding_mask_crop": 1, "mask": [WHITE, WHITE]}),
    ("image: got 2 of them", {"padding_mask_crop": 1, "image": [picture(48, 32)] * 2}),
    ("overlay: got it with output_type", {"overlay": True, "output_type": "latent"}),
    ("padding_mask_crop: got it with", {"padding_mask_crop": 1, "output_type": "latent"}),
    ("mask: got .48, 32., expected .47, 32.", {"padding_mask_crop": 1, "image": picture(47, 32)}),
    ("mask: got int64", {"padding_mask_crop": 1, "mask": np.ones((32, 48), np.int64)}),
    ("image: got 'x.png'", {"padding_mask_crop": 1, "image": "x.png"}),
    ("image: got a picture of mode F", {"padding_mask_crop": 1, "image": Image.new("F", (48, 32))}),
]


@pytest.mark.parametrize(("message", "words"), REFUSED)
def test_what_cannot_be_kept_is_refused(pipe, message, words):
    with pytest.raises(UsageError, match=rf"^{message}"):
        pipe.request(PROMPTS, **{"image": picture(48, 32), "mask": WHITE, **words})


# the command, and batches


@pytest.fixture
def files(tmp_path):
    """The options of a picture and its mask, and a file of two prompts."""
    paths = tmp_path / "picture.png", tmp_path / "mask.png", tmp_path / "prompts.txt"
    picture().save(paths[0])
    blurred().save(paths[1])
    paths[2].write_text("\n".join(PROMPTS))
    options = ["--image", str(paths[0]), "--mask", str(paths[1]), "--strength", "0.5"]
    return [*options, "--steps", "2", "--seed", "0", "--backend", "cpu"], paths


@pytest.mark.parametrize("kept", [["--overlay"], ["--padding-mask-crop", "4"]])
def test_the_options_are_keywords(pipe, sd35_bundle, files, tmp_path, kept):
    target, size = tmp_path / "x.png", ["--size", "48x32"]
    command = ["generate", str(sd35_bundle), "x", *files[0], *kept, *size, "-o", str(target)]
    assert main(command) == 0
    word = {"overlay": True} if kept == ["--overlay"] else {"padding_mask_crop": 4}
    words = {"image": picture(), "mask": blurred(), "height": 32, "width": 48, **word, **FAST}
    (reference,) = pipe("x", **words).images
    with Image.open(target) as made:
        np.testing.assert_array_equal(np.asarray(made), np.asarray(reference))


def test_every_prompt_of_a_file_paints_the_picture(pipe, sd35_bundle, files, tmp_path, capsys):
    options, (image, _, prompts) = files
    command = ["generate", str(sd35_bundle), "--prompts", str(prompts), "-o", str(tmp_path / "out")]
    command += [*options, "--padding-mask-crop", "4"]
    assert main(command) == 0
    made = sorted((tmp_path / "out").glob("*.png"))
    for i, path in enumerate(made):
        words = {"image": picture(), "mask": blurred(), "padding_mask_crop": 4, **FAST, "seed": i}
        (reference,) = pipe(PROMPTS[i], **words).images
        with Image.open(path) as ours:
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(reference))
    assert len(made) == len(PROMPTS)
    capsys.readouterr()
    assert main(command) == 0
    assert "0 done, 2 kept" in capsys.readouterr().out
    picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)  # another picture, other ones
    assert main(command) == 2
    capsys.readouterr()
    assert main([*command, "--force"]) == 0
    assert "2 done, 0 kept" in capsys.readouterr().out


def test_a_batch_has_one_picture(pipe, monkeypatch):
    fitted, crop = [], image_to_image.crop_to_mask
    monkeypatch.setattr(
        image_to_image, "crop_to_mask", lambda *given: fitted.append(given) or crop(*given)
    )
    config = eri.SamplingConfig(2, height=32, width=48, seed=0)
    words = {"image": picture(), "mask": blurred(), "padding_mask_crop": 4}
    made = eri.batch_sample(PROMPTS, config, pipe=pipe, **words)
    assert [image.shape for image in made] == [(3, TALL, WIDE)] * 2
    assert len(fitted) == 2, "once to check all jobs, and once for their batch"
    for name in ("image", "mask"):
        with pytest.raises(UsageError, match=f"^{name}: got 2 of them, expected one for all jobs"):
            eri.batch_sample(PROMPTS, config, pipe=pipe, **{**words, name: [words[name]] * 2})
