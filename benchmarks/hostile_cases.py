"""The cases of `benchmarks.hostile`: damage by a seed, a call, and what came of it.

A case is a campaign, a number and a seed, so that any one can be repeated alone.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

import eri_runtime as eri
from eri_runtime.batch import read_prompts
from eri_runtime.bundle import file_record, read_tensors
from eri_runtime.errors import EriError
from eri_runtime.images import read_picture
from eri_runtime.pipeline import Pipeline

LONGEST = 4500  # characters of an error's message
MANIFEST = "manifest.json"
WORDS: Mapping[str, Any] = {"num_inference_steps": 1, "seed": 0, "output_type": "np"}
VALUES = (
    None, True, "", "x", "x" * 10**6, [], {}, [[]], 0, -1, 1, 3, 10**6, 2**63, 10**400, 0.5, -0.5,
    1e308, 1e-320, float("nan"), float("inf"),
)  # fmt: skip
FORMATS = {
    "PNG": ("RGB", "RGBA", "P", "L", "1", "I;16", "LA"), "JPEG": ("RGB", "CMYK", "L"),
    "GIF": ("P", "L"), "TIFF": ("RGB", "CMYK", "F", "I;16"), "BMP": ("RGB", "P"),
    "PPM": ("RGB", "L"), "SGI": ("RGB", "L"), "DDS": ("RGBA", "RGB"), "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB",), "TGA": ("RGB", "P"), "ICO": ("RGBA",), "PCX": ("RGB",), "JPEG2000": ("RGB",),
    "MPO": ("RGB",), "IM": ("RGB",), "EPS": ("RGB",),
}  # fmt: skip
LINES = (
    b"a red heart\n# comment\n\na pizza\n",
    b'{"prompt": "a red heart", "steps": 2, "size": "64x64", "seed": 7}\n{"prompt": "a pizza"}\n',
    b'prompt,steps,seed,size\n"a red, red heart",2,7,64x64\na pizza,,,\n',
)
JUNK = (
    b"\0", b"\xff\xfe", b"[" * 5000, b"{" * 3000, b'"' * 9, b"9" * 5000, b"1e999", b"NaN", b"\r",
    b"\xed\xa0\x80", b"\n" * 999, b",", b"-", b"A" * 10**5,
)  # fmt: skip

LORA_CHANGES: tuple[Any, ...] = (
    lambda array: array * np.float32(np.nan), lambda array: array * np.float32(3e38),
    lambda array: array.astype(np.int8), lambda array: array.astype(np.float64),
    lambda array: array.astype(np.uint8), lambda array: array.astype(bool),
    lambda array: array.reshape(-1), lambda array: array.T.copy(), lambda array: array[:0],
    lambda array: array[..., None, None], lambda array: np.tile(array, (2, 1)),
    "metadata", "alpha", "lora_down.weight", "dora_scale", "lora_magnitude_vector", "hada_w1_a",
    "lokr_w1", "weight_scale", "comfy_quant", "diff", "lora_mid.weight", "x" * 5000, "..", "\0",
)  # fmt: skip
LORA_METADATA = (
    "", "x", "[" * 10**5, "NaN", "9" * 5000, '{"lora_alpha": 1e400}', '{"lora_alpha": "x"}',
    '{"alpha_pattern": {"(a*)*": 1}}', '{"alpha_pattern": []}', '{"peft_type": {}}',
    '{"transformer.lora_alpha": true}', '{"use_dora": 1, "r": 1e9}',
)  # fmt: skip

Case = Callable[["Cases", random.Random, Path], str]


class Cases:
    """The campaigns over one bundle.

    Args:
        bundle: A bundle; it is copied.
        work: A folder for the copies, on one file system.
    """

    def __init__(self, bundle: Path, work: Path) -> None:
        self.work, self.whole = work, work / "whole"
        if not self.whole.is_dir():
            shutil.copytree(bundle, self.whole)
        self.pipe: Pipeline = eri.load(self.whole, "cpu", threads=1)
        self.names = sorted(self.pipe.bundle.files)
        self.picture = self.pipe("a red heart", **WORDS).images
        self.lora = _lora(self.pipe)

    def run(self, campaign: str, number: int, seed: int) -> dict[str, str]:
        """Returns the outcome of a case: its `kind`, and what was raised."""
        draw = random.Random(f"{seed}/{campaign}/{number}")  # noqa: S311 a fixed draw
        folder = self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            return {"kind": CAMPAIGNS[campaign](self, draw, folder)}
        except EriError as error:
            kind = "typed error" if len(str(error)) <= LONGEST else "long message"
            return {"kind": kind, "type": type(error).__name__}
        except Exception as error:  # what this benchmark is looking for
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            return {"kind": "raw exception", "type": type(error).__name__, "where": where}

    def linked(self, folder: Path) -> Path:
        """Returns a bundle of hard links in `folder`; a file must be replaced, not changed."""
        for file in self.whole.rglob("*"):
            target = folder / "bundle" / file.relative_to(self.whole)
            if file.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)
        return folder / "bundle"

    def generate(self, bundle: Path) -> str:
        """Returns what became of the picture of a bundle."""
        with eri.load(bundle, "cpu", threads=1) as pipe:
            images = pipe("a red heart", **WORDS).images
        return "same picture" if np.array_equal(images, self.picture) else "wrong picture"


def flipped(draw: random.Random, content: bytes) -> bytes:
    """Returns `content` with one to eight bits turned over."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: random.Random, content: bytes) -> bytes:
    """Returns the beginning of `content`, or all of it with something behind it."""
    if draw.random() < 0.2:
        return content + draw.randbytes(draw.randint(1, 64))
    return content[: draw.randrange(max(len(content), 1))]


def stuffed(draw: random.Random, content: bytes) -> bytes:
    """Returns `content` with junk at some place, in addition or instead."""
    start, junk = draw.randrange(len(content) + 1), draw.choice(JUNK)
    return content[:start] + junk + content[start + draw.choice((0, 0, len(junk))) :]


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Returns `content`, damaged in one of the ways above."""
    return draw.choice((flipped, cut, stuffed))(draw, content)


def replaced(file: Path, content: bytes) -> None:
    """Writes a new file in the place of a hard link."""
    file.unlink()
    file.write_bytes(content)


def _damaged_file(damage: Callable[[random.Random, bytes], bytes]) -> Case:
    def case(cases: Cases, draw: random.Random, folder: Path) -> str:
        file = cases.linked(folder) / draw.choice(cases.names)
        replaced(file, damage(draw, file.read_bytes()))
        return cases.generate(folder / "bundle")

    return case


def swapped_files(cases: Cases, draw: random.Random, folder: Path) -> str:
    """Two files of the bundle change their places."""
    bundle = cases.linked(folder)
    first, second = (bundle / name for name in draw.sample(cases.names, 2))
    one, other = first.read_bytes(), second.read_bytes()
    replaced(first, other)
    replaced(second, one)
    return cases.generate(bundle)


def believed_file(cases: Cases, draw: random.Random, folder: Path) -> str:
    """A damaged file whose new size and sha256 are in the manifest: any picture is right."""
    bundle = cases.linked(folder)
    name = draw.choice([name for name in cases.names if "safetensors" not in name])
    replaced(bundle / name, damaged(draw, (bundle / name).read_bytes()))
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = vars(file_record(bundle / name))
    replaced(bundle / MANIFEST, json.dumps(manifest).encode())
    cases.generate(bundle)
    return "some picture"


def edited_manifest(cases: Cases, draw: random.Random, folder: Path) -> str:
    """One value of the manifest is another one: the picture is what the manifest then says."""
    bundle = cases.linked(folder)
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    path = draw.choice(list(_paths(manifest)))
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    if draw.random() < 0.1:
        del parent[path[-1]]
    else:
        parent[path[-1]] = draw.choice(VALUES)
    replaced(bundle / MANIFEST, json.dumps(manifest).encode())
    cases.generate(bundle)
    return "some picture"


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the places of all values of a JSON tree, at most four of each list."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value[:4]) if isinstance(value, list) else items:
        yield from _paths(each, (*path, key))


def damaged_manifest(cases: Cases, draw: random.Random, folder: Path) -> str:
    """The bytes of the manifest are damaged."""
    bundle = cases.linked(folder)
    replaced(bundle / MANIFEST, damaged(draw, (bundle / MANIFEST).read_bytes()))
    cases.generate(bundle)
    return "some picture"


def damaged_lora(cases: Cases, draw: random.Random, folder: Path) -> str:
    """The bytes of a LoRA are damaged; half of the time those of its header."""
    content, file = cases.lora, folder / "lora.safetensors"
    head = 8 + int.from_bytes(content[:8], "little") if draw.random() < 0.5 else len(content)
    file.write_bytes(damaged(draw, content[:head]) + content[head:])
    return _with_lora(cases, file)


def edited_lora(cases: Cases, draw: random.Random, folder: Path) -> str:
    """A valid file whose tensors, keys or metadata are not those of a LoRA that fits."""
    tensors, metadata = dict(load(cases.lora)), {}
    for _ in range(draw.randint(1, 2)):
        key = draw.choice(list(tensors))
        change = draw.choice(LORA_CHANGES)
        if callable(change):
            with np.errstate(all="ignore"):
                tensors[key] = change(tensors[key])
        elif change == "metadata":
            metadata["lora_adapter_metadata"] = draw.choice(LORA_METADATA)
        else:
            tensors[key.replace("lora_A.weight", change)] = tensors[key]
            if draw.random() < 0.5:
                tensors.pop(key, None)
    file = folder / "lora.safetensors"
    file.write_bytes(save(tensors, metadata or None))
    return _with_lora(cases, file)


def _with_lora(cases: Cases, file: Path) -> str:
    """Generates with a LoRA, and takes it out again."""
    try:
        cases.pipe.load_lora(file, name="hostile")
        cases.pipe("a red heart", **WORDS)
    finally:
        cases.pipe.unload_loras()
    return "some picture"


def damaged_picture(cases: Cases, draw: random.Random, folder: Path) -> str:
    """A picture in one of Pillow's formats is damaged, and given as `image` and `mask`."""
    kind = draw.choice(list(FORMATS))
    mode, size = draw.choice(FORMATS[kind]), (draw.randint(64, 80), draw.randint(64, 80))
    buffer, file = io.BytesIO(), folder / f"picture.{kind.lower()}"
    noise = Image.effect_noise(size, 50)
    picture = Image.new(mode, size) if mode in ("F", "I;16") else noise.convert(mode)
    picture.save(buffer, kind)
    content = buffer.getvalue()
    file.write_bytes(content if draw.random() < 0.1 else damaged(draw, content))
    image = read_picture("--image", file)
    cases.pipe.request("a red heart", image=image, mask=image, **WORDS, **_size(cases))
    return "some picture"


def damaged_prompts(_: Cases, draw: random.Random, folder: Path) -> str:
    """A file of prompts is damaged."""
    number = draw.randrange(len(LINES))
    file = folder / f"prompts{('.txt', '.jsonl', '.csv')[number]}"
    content = LINES[number]
    for _ in range(draw.randint(1, 3)):
        content = damaged(draw, content)
    file.write_bytes(content)
    read_prompts(file)
    return "prompts"


def _size(cases: Cases) -> dict[str, int]:
    """Returns the bundle's own size of a picture."""
    defaults = cases.pipe.bundle.defaults
    return {"height": defaults.height, "width": defaults.width}


def _lora(pipe: Pipeline) -> bytes:
    """Returns a LoRA of rank 1 for two linear weights of a pipeline's denoiser."""
    weights = pipe.bundle.path(pipe.bundle.components["denoiser"].weights)
    shapes = read_tensors(weights).shapes
    linear = [name for name in shapes if len(shapes[name]) == 2 and "attn" in name][:2]
    scope = "unet" if pipe.bundle.family == "sdxl" else "transformer"
    tensors = {}
    for name in linear:
        rows, columns = shapes[name]
        module = f"{scope}.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = np.full((1, columns), 0.01, np.float32)
        tensors[f"{module}.lora_B.weight"] = np.full((rows, 1), 0.01, np.float32)
    return save(tensors)


CAMPAIGNS: Mapping[str, Case] = {
    "bundle: flipped bits": _damaged_file(flipped),
    "bundle: truncated or longer": _damaged_file(cut),
    "bundle: swapped files": swapped_files,
    "bundle: damaged file with its new hash": believed_file,
    "bundle: edited manifest": edited_manifest,
    "bundle: damaged manifest": damaged_manifest,
    "LoRA: damaged": damaged_lora,
    "LoRA: edited": edited_lora,
    "picture: damaged": damaged_picture,
    "prompts file: damaged": damaged_prompts,
}
