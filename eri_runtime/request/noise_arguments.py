"""The noise of a call: `seed`, `generator` and `noise`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from eri_runtime.errors import UsageError
from eri_runtime.request.arguments import check_noise_source
from eri_runtime.request.image_to_image import Edit, first_noise
from eri_runtime.sampling import GeneratorNoise, NoiseName, NoiseSource, image_seeds, make_streams


class CallNoise(NamedTuple):
    """Where the noise of a call comes from.

    Attributes:
        seeds: One number per image.
        noise: A noise source, or the name of one.
        seeded: Whether an image's seed alone repeats its noise.
    """

    seeds: tuple[int, ...]
    noise: NoiseSource | NoiseName
    seeded: bool


def check_call_noise(words: Mapping[str, Any], count: int, edit: Edit | None) -> CallNoise:
    """Returns the noise of `count` images.

    Raises `UsageError` for what is no seed, generator or noise, for a generator beside `seed` or
    `noise`, and for one generator of several edited images.
    """
    if "generator" not in words:
        noise = check_noise_source(words.get("noise", "torch"))
        return CallNoise(image_seeds(words.get("seed"), count), noise, seeded=True)
    for other in ("seed", "noise"):
        if other in words:
            raise UsageError("generator", got=f"generator and {other}", expected="one of them")
    first = first_noise(edit, has_latents=words.get("latents") is not None)
    streams = make_streams(words["generator"], count)
    source = GeneratorNoise(streams, count, first)
    if edit is not None and source.shared:
        got, fix = f"one for {count} edited images", "pass a list of one per image"
        raise UsageError("generator", got=got, expected="one per image", fix=fix)
    known = [stream.seed for stream in streams if stream.seed is not None]
    seeded = len(known) == count
    return CallNoise(tuple(known) if seeded else (0,) * count, source, seeded)
