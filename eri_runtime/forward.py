"""One call of SDXL's denoiser, under the name of the Rust API: for a loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import float32, real
from eri_runtime.conditioning import Condition, condition_inputs
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.executors.base import check_finite
from eri_runtime.pipelines import Pipeline

Array = NDArray[np.float32]
ADDED = ("text_embeds", "time_ids")  # diffusers' `added_cond_kwargs` of SDXL


def forward_sdxl_sampling(
    pipe: Pipeline,
    latent: ArrayLike,
    text_embeddings: ArrayLike,
    pooled_embeddings: ArrayLike,
    timestep: float,
    added_cond_kwargs: Mapping[str, ArrayLike] | None = None,
) -> Array:
    """F(x, t, c), what SDXL's UNet predicts: eps or v as it was trained, without guidance.

    `pipe` is an open SDXL pipeline (`eri.load`), which stands for the weights and the config of the
    Rust API. `latent` is x (B, 4, H/8, W/8), `text_embeddings` (B, T, 2048), `pooled_embeddings`
    (B, 1280), as `pipe.encode_prompt` gives them; any numbers, cast to float32. `timestep` is the
    training clock, a number in [0, num_train_timesteps). `added_cond_kwargs`, as in diffusers, may
    hold `time_ids` (B, 6) (original size, crop, target size: Podell et al. 2023, arXiv 2307.01952,
    sec. 2.2; the latent's own size uncropped if left out) and `text_embeds` (B, 1280), which then
    counts before `pooled_embeddings`. Gives (B, 4, H/8, W/8) float32.

    Raises `UsageError` for another family or a timestep out of range, `SizeError` for shapes the
    bundle does not hold, `UnknownNameError` for another key, `NonFiniteError` for NaN or Inf.
    """
    spec = _sdxl(pipe).bundle.latents
    x = _ranked("latent", latent, "(B, 4, H/8, W/8)", 4)
    embeds = _ranked("text_embeddings", text_embeddings, "(B, T, D)", 3, len(x))
    pooled = _ranked("pooled_embeddings", pooled_embeddings, "(B, P)", 2, len(x))
    added = _added(added_cond_kwargs, len(x))
    count = pipe.bundle.schedule.num_train_timesteps
    t = real("timestep", timestep, f"0 to below {count}", lambda number: 0 <= number < count)
    height, width = (side * spec.factor for side in x.shape[2:])
    scale = np.zeros(len(x), np.float32)  # of an embedded guidance, which SDXL has not
    inputs = condition_inputs(pipe.bundle, Condition(embeds, pooled), height, width, scale)
    clock = {"sample": x, "timestep": np.full(len(x), t, np.float32)}
    output: Array = pipe.run("denoiser", {**clock, **inputs, **added})["output"]
    check_finite("the denoiser's output", output)
    return output


def _sdxl(pipe: object) -> Pipeline:
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)
    if pipe.bundle.family != "sdxl":
        got = f"a bundle of the {pipe.bundle.family} family"
        raise UsageError("pipe", got=got, expected="one of the sdxl family")
    return pipe


def _added(given: Mapping[str, ArrayLike] | None, batch: int) -> dict[str, Array]:
    """The conditions of `added_cond_kwargs`, by the names of the graph's inputs."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError("added_cond_kwargs", got=short(given), expected="a mapping or None")
    for name in given:
        if name not in ADDED:
            expected = f"one of {', '.join(ADDED)}"
            raise UnknownNameError("added_cond_kwargs", got=short(name), expected=expected)
    return {
        name: _ranked(f"added_cond_kwargs[{name!r}]", value, "(B, N)", 2, batch)
        for name, value in given.items()
    }


def _ranked(name: str, value: ArrayLike, shape: str, rank: int, batch: int | None = None) -> Array:
    """`value` as float32 of that rank, with as many rows as the latent where `batch` says so."""
    array = float32(name, value)
    if array.ndim != rank or batch not in (None, len(array)):
        rows = "" if batch is None else f" with B {batch}, the latent's"
        raise SizeError(name, got=array.shape, expected=f"{shape}{rows}")
    return array
