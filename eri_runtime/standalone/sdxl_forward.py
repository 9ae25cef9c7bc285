"""One call of SDXL's denoiser for your own loop, under the name of the Rust sampling API."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import check_finite, float32, real
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.pipeline import Pipeline
from eri_runtime.sampling import NO_EMBEDDING
from eri_runtime.text import Condition, condition_inputs

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
    """Evaluates SDXL's UNet once, without guidance: F(x, t, cond).

    Arrays may have any numeric dtype and are cast to float32. `pipe.encode_prompt` returns the
    embeddings.

    Args:
        pipe: An open SDXL pipeline, from `load`. It replaces the weights and the config of the
            Rust API.
        latent: Noisy latents x, (B, 4, H/8, W/8).
        text_embeddings: Token embeddings of the prompts, (B, T, 2048).
        pooled_embeddings: Pooled embeddings of the prompts, (B, 1280).
        timestep: Training timestep, in [0, num_train_timesteps).
        added_cond_kwargs: As in diffusers, may hold `time_ids` (B, 6), the original size, crop and
            target size (Podell et al. 2023, arXiv 2307.01952, sec. 2.2; default: the latent's own
            size, not cropped), and `text_embeds` (B, 1280), which replaces `pooled_embeddings`.

    Returns:
        The prediction, (B, 4, H/8, W/8) float32: eps or v, as `pipe.bundle.schedule.prediction`
        says.

    Raises:
        UsageError: If `pipe` is no open SDXL pipeline, `timestep` is out of range, or
            `added_cond_kwargs` is no mapping.
        SizeError: If the bundle does not support a shape.
        UnknownNameError: If `added_cond_kwargs` has another key.
        NonFiniteError: If an input or the prediction contains NaN or Inf.

    Example:
        ```python
        with eri.load("engines/sdxl") as pipe:
            cond = pipe.encode_prompt("a red heart")
            eps = eri.forward_sdxl_sampling(
                pipe, latent, cond.embeds, cond.pooled, timestep=999
            )
        ```
    """
    spec = _sdxl(pipe).bundle.latents
    x = _ranked("latent", latent, "(B, 4, H/8, W/8)", 4)
    embeds = _ranked("text_embeddings", text_embeddings, "(B, T, D)", 3, len(x))
    pooled = _ranked("pooled_embeddings", pooled_embeddings, "(B, P)", 2, len(x))
    added = _added(added_cond_kwargs, len(x))
    count = pipe.bundle.schedule.num_train_timesteps
    t = real("timestep", timestep, f"0 to below {count}", lambda number: 0 <= number < count)
    height, width = (side * spec.factor for side in x.shape[2:])
    no_guidance = np.full(len(x), NO_EMBEDDING, np.float32)  # a UNet of LCM gets none
    inputs = condition_inputs(pipe.bundle, Condition(embeds, pooled), height, width, no_guidance)
    state = {"sample": x, "timestep": np.full(len(x), t, np.float32)}
    output: Array = pipe.run("denoiser", {**state, **inputs, **added})["output"]
    check_finite("the denoiser's output", output)
    return output


def _sdxl(pipe: object) -> Pipeline:
    """Returns `pipe`; raises `UsageError` if it is not an SDXL pipeline."""
    if not isinstance(pipe, Pipeline):
        fix = "open the bundle with `eri_runtime.load`"
        raise UsageError("pipe", got=short(pipe), expected="an open Pipeline", fix=fix)
    if pipe.bundle.family != "sdxl":
        got = f"a bundle of the {pipe.bundle.family} family"
        raise UsageError("pipe", got=got, expected="one of the sdxl family")
    return pipe


def _added(cond_kwargs: Mapping[str, ArrayLike] | None, batch: int) -> dict[str, Array]:
    """Checks `added_cond_kwargs` and returns its arrays, by the names of the graph's inputs."""
    if cond_kwargs is None:
        return {}
    if not isinstance(cond_kwargs, Mapping):
        raise UsageError("added_cond_kwargs", got=short(cond_kwargs), expected="a mapping or None")
    for name in cond_kwargs:
        if name not in ADDED:
            expected = f"one of {', '.join(ADDED)}"
            raise UnknownNameError("added_cond_kwargs", got=short(name), expected=expected)
    return {
        name: _ranked(f"added_cond_kwargs[{name!r}]", value, "(B, N)", 2, batch)
        for name, value in cond_kwargs.items()
    }


def _ranked(name: str, value: ArrayLike, shape: str, rank: int, batch: int | None = None) -> Array:
    """Converts `value` to float32; raises `SizeError` for another rank or number of rows.

    `shape` describes the shape for the message; `batch` None allows any number of rows.
    """
    array = float32(name, value)
    if array.ndim != rank or batch not in (None, len(array)):
        rows = "" if batch is None else f" with B {batch}, the latent's"
        raise SizeError(name, got=array.shape, expected=f"{shape}{rows}")
    return array
