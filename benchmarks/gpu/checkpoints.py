"""Makes full-size checkpoints from the shipped configs alone: hollow ones, or random weights.

A hollow checkpoint has the published headers over sparse data: every shape is right, every weight
is zero, and it takes no disk. That is enough for an export without a comparison.

For random weights, a matrix has normal weights over the square root of its inputs, a norm's scale
is near 1 and a bias near 0, so every layer has about unit gain. All normal values are slices of one
pool whose length is a prime, so that no two rows of a matrix start at the same place. This is as
fast as the disk, and gives the same values on every machine.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from eri_export.checkpoints import shipped_configs
from eri_export.checkpoints.checkpoint import PARTS
from eri_runtime.bundle import Family
from tests.support.single_files import full_size, sparse

POOL = 16_777_213  # a prime
SHARD = 4 << 30  # bytes
ENCODER = "text_encoder"
PIPELINES = {
    "sdxl": "StableDiffusionXLPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


def hollow_checkpoint(
    family: Family, published: shipped_configs.Model, parts: Iterable[str], root: Path
) -> Path:
    """Writes a diffusers folder with these parts of a published model to `root`.

    Text encoders are beside the pipeline, not of it: as added ones they get shipped tokenizers.
    """
    configs = shipped_configs.configs(published)
    index = {part: [None, None] for part in PARTS[family]}
    pipeline = (name for name in parts if not name.startswith(ENCODER))
    index |= {name: ["diffusers", PARTS[family][name]] for name in pipeline}
    _write_json(root / "model_index.json", {"_class_name": PIPELINES[family], **index})
    _write_json(root / "scheduler" / "scheduler_config.json", configs["scheduler"])
    for name in parts:
        _write_json(root / name / "config.json", configs[name])
        stem = "model" if name.startswith(ENCODER) else "diffusion_pytorch_model"
        shapes = {key: tuple(each.shape) for key, each in full_size(published, name).items()}
        sparse(root / name / f"{stem}.safetensors", shapes, "F16")
    return root


def write_shards(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, most: int = SHARD
) -> None:
    """Writes random weights to files of at most about `most` bytes, and their index."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    shards = list(_shards(shapes, dtype.itemsize, most))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: weight(key, shapes[key], pool).to(dtype) for key in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(
        folder / "diffusion_pytorch_model.safetensors.index.json",
        {"metadata": {}, "weight_map": weight_map},
    )


def weight(name: str, shape: tuple[int, ...], pool: torch.Tensor) -> torch.Tensor:
    """Returns the values of a weight, which depend only on its name and shape."""
    count, start = math.prod(shape), zlib.crc32(name.encode()) % len(pool)
    repeats = -(-(start + count) // len(pool))
    normal = pool.repeat(repeats)[start : start + count].view(shape)
    if len(shape) > 1:
        return normal * (count / shape[0]) ** -0.5
    return 0.1 * normal + (1.0 if name.endswith("weight") else 0.0)


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int) -> Iterator[list[str]]:
    """Yields the names of each file's weights."""
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
    """Writes a JSON file and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")
