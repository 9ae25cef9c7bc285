"""Pictures of training as files: what is in them, what they are called, what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image

from eri_runtime.errors import NonFiniteError, SizeError, UsageError
from eri_runtime.training.image_files import file_name, save_image, save_tensor_as_image, slug

RGB = np.random.default_rng(0).integers(0, 256, (3, 8, 12), dtype=np.uint8)
GREY = RGB[:1]


def signed(pixels):
    """Bytes as a network gives them, exactly."""
    return pixels.astype(np.float64) / 127.5 - 1


def read(path):
    """(C, H, W) of a PNG, and its mode."""
    with Image.open(path) as image:
        array = np.asarray(image)
        return (array[None] if array.ndim == 2 else array.transpose(2, 0, 1)), image.mode


KINDS = {
    "float64": lambda a: a,
    "float32": lambda a: a.astype(np.float32),
    "torch": lambda a: torch.from_numpy(a).requires_grad_(),
    "torch of strides": lambda a: torch.from_numpy(a.swapaxes(-1, -2).copy()).transpose(-1, -2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pixels", "mode"), [(RGB, "RGB"), (GREY, "L")])
def test_pixels_come_back_to_the_bit(tmp_path, kind, pixels, mode):
    path = save_image(KINDS[kind](signed(pixels)), tmp_path / "new", "sd35", 7, 3, "a heart")
    assert path.parent == tmp_path / "new"
    found, got = read(path)
    assert got == mode
    np.testing.assert_array_equal(found, pixels)
    save_tensor_as_image(KINDS[kind](pixels.astype(np.float64)), tmp_path / "raw.png")
    np.testing.assert_array_equal(read(tmp_path / "raw.png")[0], pixels)


HALVES = [
    lambda a: torch.from_numpy(a).bfloat16(),
    lambda a: torch.from_numpy(a).half(),
    lambda a: a.astype(np.float16),
    lambda a: a.astype(ml_dtypes.bfloat16),
]


@pytest.mark.parametrize("half", HALVES)
def test_sixteen_bits_round_no_more_than_they_must(tmp_path, half):
    found, _ = read(save_image(half(signed(RGB)), tmp_path, "sd35", 0, 0, ""))
    assert np.abs(found.astype(int) - RGB).max() <= 1
    save_tensor_as_image(half(RGB.astype(np.float64)), tmp_path / "raw.png")
    assert np.abs(read(tmp_path / "raw.png")[0].astype(int) - RGB).max() <= 1


def test_a_batch_is_as_many_files_and_the_first_is_named(tmp_path):
    batch = signed(np.stack([RGB, RGB[::-1], 255 - RGB]))
    first = save_image(batch, tmp_path, "sdxl", 10, 1, "a cat")
    other = save_image(batch[:1], tmp_path, "sdxl", 10, 2, "a cat")
    names = [f"sdxl_step00000010_001{row}_a-cat.png" for row in ("", "-1", "-2")]
    assert (first, other.name) == (tmp_path / names[0], "sdxl_step00000010_002_a-cat.png")
    assert {path.name for path in tmp_path.iterdir()} == {*names, other.name}
    for name, pixels in zip(names, (RGB, RGB[::-1], 255 - RGB), strict=True):
        np.testing.assert_array_equal(read(tmp_path / name)[0], pixels)


def test_the_png_says_how_it_was_made(tmp_path):
    path = save_image(signed(RGB), tmp_path, "flux", 12, 4, "ein Herz, rot: ❤")
    with Image.open(path) as image:
        assert image.text["parameters"] == (
            "ein Herz, rot: ❤\nModel: flux, Training step: 12, Index: 4"
        )


def test_a_decoders_overshoot_is_clipped(tmp_path):
    path = save_image(np.full((3, 8, 8), 1.7) * [[[-1]], [[0]], [[1]]], tmp_path, "m", 0, 0, "x")
    np.testing.assert_array_equal(read(path)[0][:, 0, 0], [0, 128, 255])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_every_byte_survives(tmp_path, dtype):
    ramp = np.arange(256, dtype=dtype).reshape(1, 16, 16)
    save_tensor_as_image(ramp, tmp_path / "ramp.png")
    np.testing.assert_array_equal(read(tmp_path / "ramp.png")[0], ramp)


SLUGS = {
    "a red heart": "a-red-heart",
    "Crème brûlée!": "creme-brulee",
    "": "untitled",
    ' ... /\\:*?"<>|\n\0': "untitled",
    "../../etc/passwd": "etc-passwd",
    "ﬁne ½": "fine-1-2",
}


@pytest.mark.parametrize("prompt", SLUGS)
def test_a_slug_is_short_ascii(prompt):
    assert slug(prompt) == SLUGS[prompt]


def test_prompts_whose_letters_are_lost_stay_apart():
    long = "a very long prompt " * 40
    prompts = ["心", "愛", "сердце", "a 心", long, long + "indeed", "\ud800"]
    slugs = [slug(prompt) for prompt in prompts]
    assert len(set(slugs)) == len(slugs)
    for name in slugs:
        assert name.isascii()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert len(name) <= 70


def test_one_slug_and_two_indices_are_two_files(tmp_path):
    paths = [
        save_image(signed(RGB), tmp_path, "m", 0, i, p) for i, p in enumerate(["A!", "a?", "a"])
    ]
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 3


def test_names_sort_by_step():
    steps = [9, 10, 100, 12345]
    names = [file_name("m", step, "000", "x") for step in steps]
    assert names == sorted(names)


@pytest.mark.parametrize("failing", [OSError("the disk is full"), KeyboardInterrupt()])
def test_no_half_written_file_stays(tmp_path, monkeypatch, failing):
    def save(self, file, **options):
        file.write(b"half")
        raise failing

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(type(failing)):
        save_image(signed(RGB), tmp_path, "m", 0, 0, "x")
    assert not list(tmp_path.iterdir())


def with_nan(array):
    array = array.copy()
    array.flat[5] = np.nan
    return array


IMAGES = [
    (RGB, UsageError, r"got uint8, expected floats.*save_tensor_as_image"),
    (RGB.astype(np.float32), UsageError, r"got values from .* to 25\d.*save_tensor_as_image"),
    (-200 * signed(RGB), UsageError, r"expected \[-1, 1\]"),
    (with_nan(signed(RGB)), NonFiniteError, "in 1 of 288 values"),
    (np.full((3, 2, 2), np.inf), NonFiniteError, "image_tensor"),
    (signed(RGB).transpose(1, 2, 0), SizeError, r"8, 12, 3\).*channels are last"),
    (np.zeros((4, 8, 8)), SizeError, "with C 1 or 3"),
    (np.zeros((8, 8)), SizeError, r"got \(8, 8\)"),
    (np.zeros((1, 1, 3, 8, 8)), SizeError, r"got \(1, 1, 3, 8, 8\)"),
    (np.zeros((0, 3, 8, 8)), SizeError, r"got \(0, 3, 8, 8\)"),
    (np.zeros((3, 8, 8), complex), UsageError, "got complex128"),
    (np.zeros((3, 8, 8), bool), UsageError, "got bool"),
    ([[1.0], [1.0, 2.0]], UsageError, "image_tensor: got list"),
    ("a.png", SizeError, r"got \(\)"),
    (None, SizeError, r"got \(\)"),
]


@pytest.mark.parametrize(("given", "error", "match"), IMAGES)
def test_what_is_no_image_of_minus_one_to_one_is_refused(tmp_path, given, error, match):
    with pytest.raises(error, match=match):
        save_image(given, tmp_path / "new", "m", 0, 0, "x")
    assert not (tmp_path / "new").exists()


TENSORS = [
    (signed(RGB), UsageError, r"values from -1 to .*expected \[0, 255\].*use save_image"),
    (RGB / 255.0, UsageError, r"looks like \[0, 1\]: multiply by 255"),
    (RGB.astype(np.float32) + 10, UsageError, "clip it first"),
    (RGB.astype(np.int32) - 100, UsageError, "values from -100"),
    (RGB[None], SizeError, "pass one image of the batch"),
    (RGB.transpose(1, 2, 0), SizeError, "channels are last"),
    (with_nan(RGB.astype(np.float32)), NonFiniteError, "tensor"),
    (np.zeros((3, 8, 8), bool), UsageError, "got bool"),
]


@pytest.mark.parametrize(("given", "error", "match"), TENSORS)
def test_what_is_no_image_of_bytes_is_refused(tmp_path, given, error, match):
    with pytest.raises(error, match=match):
        save_tensor_as_image(given, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


ARGUMENTS = [
    ({"step": -1}, "^step"),
    ({"step": 1.5}, "^step"),
    ({"idx": True}, "^idx"),
    ({"prompt": None}, "^prompt"),
    ({"model_name": 3}, "^model_name"),
    ({"output_dir": 3}, "^output_dir"),
    ({"output_dir": "a\0b"}, "^output_dir"),
]


@pytest.mark.parametrize(("changed", "match"), ARGUMENTS)
def test_a_bad_argument_is_named(tmp_path, changed, match):
    words = {"output_dir": tmp_path, "model_name": "m", "step": 0, "idx": 0, "prompt": "x"}
    with pytest.raises(UsageError, match=match):
        save_image(signed(RGB), **{**words, **changed})
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="a place where a PNG can be written"):
        save_image(signed(RGB), tmp_path / "file", "m", 0, 0, "x")
    with pytest.raises(UsageError, match="a place where a PNG can be written"):
        save_tensor_as_image(RGB, tmp_path / "folder.png")
    with pytest.raises(UsageError, match=r"ends in \.png"):
        save_tensor_as_image(RGB, tmp_path / "x.jpg")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}
