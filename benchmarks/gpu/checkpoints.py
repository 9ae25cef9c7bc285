"""Full-size checkpoints with random weights, made from the shipped configs and nothing else.

A matrix has normal weights over the square root of its inputs, a norm's scale is near 1 and a bias
near 0, so that every layer has about unit gain: the blocks of these networks normalise what they
read and add what they make, and the stream grows as the square root of their number, far from what
float16 holds. All normals are slices of one pool whose length is a prime, so that no two rows of a
matrix begin at the same place; that is as fast as the disk, and the same on every machine.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

from benchmarks.gpu.settings import Model
from eri_export import shipped
from eri_export.checkpoint import DENOISERS, PARTS
from eri_export.recipes.base import TORCH_PRECISION
from tests import checkpoints as tiny
from tests.single_files import full_size

POOL = 16_777_213  # a prime
SHARD = 4 << 30  # bytes
PIPELINES = {
    "sdxl": "StableDiffusionXLPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


def make_checkpoint(model: Model, root: Path) -> Path:
    """A diffusers folder at `root`: the tiny pipeline, or the denoiser of a published model."""
    if model.tiny is not None:
        return getattr(tiny, model.tiny)(root)
    published = cast(shipped.Model, model.published)
    configs, name = shipped.configs(published), DENOISERS[model.family]
    folder = root / name
    folder.mkdir(parents=True)
    index = {part: [None, None] for part in PARTS[model.family]}
    index |= {name: ["diffusers", PARTS[model.family][name]]}
    _write_json(root / "model_index.json", {"_class_name": PIPELINES[model.family], **index})
    _write_json(root / "scheduler" / "scheduler_config.json", configs["scheduler"])
    _write_json(folder / "config.json", configs[name])
    shapes = {key: tuple(each.shape) for key, each in full_size(published, name).items()}
    write_shards(folder, shapes, TORCH_PRECISION[model.precision])
    return root


def write_shards(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, most: int = SHARD
) -> None:
    """Random weights of these shapes in files of at most about `most` bytes, and their index."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    shards = list(_shards(shapes, dtype.itemsize, most))
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: weight(key, shapes[key], pool).to(dtype) for key in names}, folder / file)
        where |= dict.fromkeys(names, file)
    _write_json(
        folder / "diffusion_pytorch_model.safetensors.index.json",
        {"metadata": {}, "weight_map": where},
    )


def weight(name: str, shape: tuple[int, ...], pool: torch.Tensor) -> torch.Tensor:
    """The values of a weight, by its name and shape."""
    count, start = math.prod(shape), zlib.crc32(name.encode()) % len(pool)
    turns = -(-(start + count) // len(pool))
    normal = pool.repeat(turns)[start : start + count].view(shape)
    if len(shape) > 1:
        return normal * (count / shape[0]) ** -0.5
    return 0.1 * normal + (1.0 if name.endswith("weight") else 0.0)


def hollow(root: Path) -> None:
    """Give back the disk of full-size weights; headers stay, which is all a recipe reads."""
    for file in root.rglob("*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as stream:
            header = 8 + int.from_bytes(stream.read(8), "little")
            stream.truncate(header)
            stream.truncate(size)


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if names and total + size > most:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _write_json(file: Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")
