"""Fills a bundle that came without weights, from the GPU's random numbers.

A matrix has normal weights over the square root of its inputs, a norm's scale is near 1 and a bias
near 0, so every layer has about unit gain. The blocks of these networks normalise their input and
add their output to the residual stream, which thus grows as the square root of their number and
stays far below float16's limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.settings import Settings
from eri_runtime.bundle import Bundle, Entry, parse_header

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
WORD = 8  # bytes of the header's length


def fill(settings: Settings, name: str, _subjects: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Writes the weights of every component; yields one row."""
    started, bundle = time.perf_counter(), settings.model(name).bundle
    size = sum(fill_file(file, bundle, settings.device) for file in weight_files(bundle))
    yield {
        "part": "fill",
        "subject": "weights",
        "precision": bundle.components["denoiser"].precision,
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 1),
    }


def weight_files(bundle: Bundle) -> list[str]:
    """Returns the names of the bundle's weights files, each once."""
    return sorted({each.weights for each in bundle.components.values()})


def fill_file(name: str, bundle: Bundle, device: str) -> int:
    """Writes random weights behind the header of a weights file; returns the file's bytes.

    The numbers depend on the device alone. What is not a float stays 0.
    """
    file, size = bundle.path(name), bundle.files[name].size
    entries, start = read_skeleton(file, size)
    generator = torch.Generator(device).manual_seed(0)
    with file.open("r+b") as stream:
        for key, entry in entries.items():
            if entry.dtype in DTYPES:
                stream.seek(start + entry.begin)
                values = weight(key, entry, generator).cpu().view(torch.uint8)
                stream.write(values.reshape(-1).numpy().data)
        stream.truncate(size)
    return size


def read_skeleton(file: Path, size: int) -> tuple[dict[str, Entry], int]:
    """Returns the tensors of a file that will have `size` bytes, and where its data starts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(WORD), "little")
        raw = stream.read(length)
    start = WORD + length
    return parse_header(raw, size - start)[0], start


def weight(name: str, entry: Entry, generator: torch.Generator) -> torch.Tensor:
    """Draws a weight on the generator's device, in its stored type and at least one dimension."""
    shape, device = entry.shape or (1,), generator.device
    normal = torch.randn(shape, generator=generator, device=device)
    if len(shape) > 1:
        normal *= (math.prod(shape) / shape[0]) ** -0.5
    else:
        normal = 0.1 * normal + (1.0 if name.endswith("weight") else 0.0)
    return normal.to(DTYPES[entry.dtype])
