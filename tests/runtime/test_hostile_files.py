"""Paths and files that hold something else: a typed error that names them, and no waiting."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import eri_runtime as eri
from eri_runtime.batch import read_prompts
from eri_runtime.bench import record
from eri_runtime.bundle import file_record, verify_all
from eri_runtime.commands.main import main
from eri_runtime.errors import SHOWN, BundleError, EriError, UsageError, short
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.images import check_output, read_picture, write_png
from eri_runtime.weights.lora import read_lora

SECONDS = 10


@contextmanager
def in_time():
    """Fails a test that waits, where the whole run would wait with it."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OBSTACLES = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": os.mkdir,
    "socket": listening,
    "loop": lambda path: path.symlink_to(path),
    "nothing": lambda path: None,
}
NAMES = ("\0", "x" * 5000, "\ud800")  # no file system takes them


READERS = {
    "image.png": lambda path: read_picture("--image", path),
    "prompts.txt": read_prompts,
    "prompts.jsonl": read_prompts,
    "prompts.csv": read_prompts,
    "lora.safetensors": read_lora,
    "manifest.json": lambda path: eri.read_bundle(path.parent),
    "results.json": record.read,
    "bundle": eri.read_bundle,
    "folder": eri.load,
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("name", READERS)
def test_no_path_is_waited_for(tmp_path, monkeypatch, name, obstacle):
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    path = Path("in") / name
    path.parent.mkdir()
    OBSTACLES[obstacle](path)
    with in_time(), pytest.raises(EriError, match="in"):
        READERS[name](path)


@pytest.mark.parametrize("obstacle", ["pipe", "device", "folder", "socket", "loop"])
def test_nothing_but_a_file_is_replaced(tmp_path, monkeypatch, obstacle):
    """A rename onto a device, as root, would take it from the whole machine."""
    monkeypatch.chdir(tmp_path)
    path = Path("out.png")
    OBSTACLES[obstacle](path)
    before = path.lstat()
    with pytest.raises(UsageError, match="--output"):
        check_output("--output", path)
    for write in (
        lambda: write_png(Image.new("L", (1, 1)), path),
        lambda: record.write(path, "text"),
        lambda: eri.save_tensor_as_image(np.zeros((1, 1, 1)), path),
    ):
        with pytest.raises((OSError, UsageError), match=r"out\.png"):
            write()
    assert path.lstat() == before


@pytest.mark.parametrize("name", READERS)
def test_texts_that_are_no_path(name):
    for each in NAMES:
        with pytest.raises(EriError):
            READERS[name](Path(each + name))


@pytest.mark.parametrize(
    "option", ["--image", "--mask", "--prompts", "--lora", "--textual-inversion"]
)
def test_the_command_waits_for_no_path(sd35_bundle, tmp_path, capsys, option):
    path = tmp_path / "pipe.txt"
    os.mkfifo(path)
    prompt = [] if option == "--prompts" else ["a cat"]
    words = [
        "generate",
        str(sd35_bundle),
        *prompt,
        option,
        str(path),
        "-o",
        str(tmp_path / "a.png"),
    ]
    with in_time():
        assert main(words) in (1, 2)
    opening, error = capsys.readouterr().err.splitlines()
    assert opening == f"eri: opening {sd35_bundle}"
    assert error.startswith("eri: ")
    assert "pipe" in error


@pytest.mark.parametrize(
    "option", ["--steps", "--size", "--sigmas", "--sampler", "--lora", "-o", "--x"]
)
def test_no_message_of_the_command_is_long(sd35_bundle, capsys, option):
    words = ["generate", str(sd35_bundle), "a cat", option, "x" * 10**5]
    with suppress(SystemExit):  # argparse's own
        assert main(words) in (1, 2)
    assert len(capsys.readouterr().err) < 10_000  # with the usage


def test_a_bundle_of_other_things(sd35_bundle, tmp_path):
    """Each file of a bundle in turn is a pipe; `load` and `eri inspect` name it."""
    copy = tmp_path / "copy"
    shutil.copytree(sd35_bundle, copy)
    for name in eri.read_bundle(copy).files:
        file = copy / name
        file.rename(tmp_path / "kept")
        os.mkfifo(file)
        with in_time(), pytest.raises(BundleError, match=file.name):
            eri.load(copy)
        with in_time(), pytest.raises(BundleError, match=file.name):
            verify_all(eri.read_bundle(copy))
        (tmp_path / "kept").replace(file)


# pictures


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 90).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks):
    """A PNG with these chunks before its pixels."""
    content = encoded("PNG")
    inserted = b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )
    return content[:33] + inserted + content[33:]


KINDS = {
    kind: encoded(kind, mode)
    for kind, mode in {
        "PNG": "P", "JPEG": "CMYK", "GIF": "P", "TIFF": "RGB", "BMP": "RGB", "PPM": "RGB",
        "SGI": "RGB", "DDS": "RGBA", "WEBP": "RGBA", "AVIF": "RGB", "TGA": "RGB", "ICO": "RGBA",
        "PCX": "RGB", "JPEG2000": "RGB",
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_ends_anywhere(tmp_path, kind):
    """Every length, up to 25 of each format: a picture of the whole size, or a `UsageError`."""
    file, content = tmp_path / "picture", KINDS[kind]
    file.write_bytes(content)
    whole = read_picture("--image", file)
    step = max(1, len(content) // 25)
    for length in range(0, len(content), step):
        file.write_bytes(content[:length])
        with in_time(), suppress(UsageError):
            assert read_picture("--image", file).size == whole.size


HOSTILE_PICTURES = {
    "a bomb of pixels": encoded("PNG")[:16] + b"\0\1\0\0\0\1\0\0" + encoded("PNG")[24:],
    "a bomb of text": png((b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**27))),
    "a bomb of a profile": png((b"iCCP", b"a\0\0" + zlib.compress(b"x" * 2**27))),
    "no pixels": encoded("PNG")[:16] + b"\0\0\0\0\0\0\0\0" + encoded("PNG")[24:],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n",
    "text": b"no picture",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_hostile_pictures(tmp_path, name):
    file = tmp_path / "picture.png"
    file.write_bytes(HOSTILE_PICTURES[name])
    with in_time(), pytest.raises(UsageError, match="--image: got"):
        read_picture("--image", file)


def test_unusual_pictures_are_read(sd35_bundle, tmp_path):
    """The first frame of an animation, CMYK, and a palette with alpha; 16 bits are refused."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    palette = Image.new("P", (32, 32))
    palette.info["transparency"] = 0
    with eri.load(sd35_bundle, "cpu", threads=1) as pipe:

        def first_pixel(image):
            request = pipe.request("a cat", image=image, height=32, width=32)
            return ((request.edit.pixels[0, :, 0, 0] + 1) * 127.5).round().tolist()

        for kind in ("GIF", "PNG", "WEBP"):
            file = tmp_path / "animated"
            frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
            red, green, blue = first_pixel(read_picture("--image", file))
            assert red > 250 > 5 > green + blue
        assert first_pixel(Image.new("CMYK", (32, 32))) == [255, 255, 255]
        assert first_pixel(palette) == [0, 0, 0]
        for mode in ("I;16", "I", "F"):
            with pytest.raises(UsageError, match="eight bits"):
                first_pixel(Image.new(mode, (32, 32)))


# JSON and tokenizers


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 500, "1e400", "NaN", "x", ""])
def test_what_is_not_json(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_infinity_in_the_configs_of_checkpoints():
    """diffusers writes `lambda_min_clipped` so."""
    assert parse_json('{"a": -Infinity}', infinite=True) == {"a": -np.inf}


def test_a_file_beyond_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_regular_file(tmp_path / "file", 11) == b"x" * 11
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular_file(tmp_path / "file", 10)


TOKENIZERS = {
    "no JSON": "x",
    "no object": "[]",
    "no model": "{}",
    "nested": "[" * 10**5,
    "another model": '{"model": {"type": "X"}, "added_tokens": []}',
    "merges of nothing": '{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}',
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_does_not_parse(sd35_bundle, tmp_path, name):
    """Its size and sha256 are the manifest's, so that only the library can tell."""
    copy = tmp_path / "copy"
    shutil.copytree(sd35_bundle, copy)
    file = "tokenizer/tokenizer.json"
    (copy / file).write_text(TOKENIZERS[name])
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][file] = vars(file_record(copy / file))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json: got"):
        eri.load(copy)


# messages


def test_no_message_is_long():
    class Loud:
        def __repr__(self):
            raise RuntimeError

        __str__ = __repr__

    for value in ("x" * 10**6, b"x" * 10**6, 10**5000, [[]] * 10**5, Loud(), np.zeros(10**6)):
        assert len(short(value)) <= SHOWN + 3
        error = EriError(value, got=value, expected=value, fix="another")
        assert len(str(error)) < 4000
        assert str(error).endswith("; another")


def test_pillow_is_only_given_pictures():
    """Pillow's own limits of text are what refuses the bombs of it."""
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20
