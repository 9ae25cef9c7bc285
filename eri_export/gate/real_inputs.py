"""Inputs of a real generation: prompts, an image, and noisy latents.

Drawn inputs reveal a wrong operator. Real inputs also produce the activations of the network's
training, in which 16 bits overflow. The outputs of one component are the inputs of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from eri_export.graphs.recipes.base import Arrays, Recipe
from eri_runtime.bundle import Bundle
from eri_runtime.latents import Array, from_vae, patchify, token_count
from eri_runtime.sampling import make_schedule
from eri_runtime.text import (
    REQUIRED_ENCODERS,
    PromptTokenizer,
    TextEncoders,
    condition_inputs,
    shared_inputs,
)

PROMPTS = ("a red fox in the snow", "")
GUIDANCE = 3.5  # for a denoiser that embeds it
STEPS = 4  # of the schedule; the rows of a batch are at different steps
SEED = 0


def real_inputs(bundle: Bundle, recipe: Recipe, outputs: Mapping[str, Arrays]) -> Arrays | None:
    """Returns a component's inputs, from the `outputs` of earlier components by name.

    None if a component that it needs is missing. `bundle` has the tokenizers and the schedule.
    """
    if recipe.name.startswith("text_encoder"):
        return {"input_ids": _token_ids(bundle, recipe)}
    if recipe.name == "vae_encoder":
        (spec,) = (each.spec for each in recipe.inputs)
        return {spec.name: test_picture(recipe.first_shape(spec))}
    if recipe.name == "vae_decoder":
        return {"latents": outputs["vae_encoder"]["mean"]}
    return _denoiser(bundle, recipe, outputs)


def _token_ids(bundle: Bundle, recipe: Recipe) -> NDArray[np.int64]:
    (spec,) = (each.spec for each in recipe.inputs)
    batch, length = recipe.first_shape(spec)
    tokenizer = PromptTokenizer(bundle, recipe.name.replace("text_encoder", "tokenizer"))
    return tokenizer(list(islice(cycle(PROMPTS), batch)), length)


def _denoiser(bundle: Bundle, recipe: Recipe, outputs: Mapping[str, Arrays]) -> Arrays | None:
    """Returns a batch of noisy images at different steps of the schedule, with different prompts.

    None if a text encoder or the VAE's encoder is missing, or the graph's sizes are others.
    """
    if not {*REQUIRED_ENCODERS, "vae_encoder"} <= outputs.keys():
        return None
    rows = np.arange(recipe.sizes[0]["batch"])
    by_row = {
        component: {name: value[rows % len(value)] for name, value in arrays.items()}
        for component, arrays in outputs.items()
    }
    longest = max(name for name in by_row if name.startswith("text_encoder"))
    tokens = by_row[longest]["hidden_states"].shape[1]
    z = from_vae(bundle.latents, by_row["vae_encoder"]["mean"])
    height, width = (size * bundle.latents.factor for size in z.shape[2:])
    prompts = list(islice(cycle(PROMPTS), len(z)))
    condition = TextEncoders(bundle, lambda name, _: dict(by_row[name]))(prompts, tokens)
    sample, timestep = _noisy(bundle, z, token_count(bundle.latents, height, width))
    guidance = np.full(len(sample), GUIDANCE, np.float32)
    conditions = condition_inputs(bundle, condition, height, width, guidance)
    shared = shared_inputs(bundle, height, width, condition.embeds.shape[1])
    named = {"sample": sample, "timestep": timestep, **conditions, **shared}
    inputs = {each.spec.name: named[each.spec.name] for each in recipe.inputs}
    sizes = recipe.sizes_of(inputs)
    return inputs if all(sizes[name] == size for name, size in recipe.constants.items()) else None


def _noisy(bundle: Bundle, z: Array, tokens: int) -> tuple[Array, Array]:
    """Returns x = alpha·z + sigma·noise and t, at a later step of the schedule for each row."""
    schedule = make_schedule(bundle.schedule, STEPS, tokens, whole_t=False)
    points = [schedule[1 + row % (STEPS - 1)] for row in range(len(z))]
    alpha, sigma, t = np.array([[p.alpha, p.sigma, p.t] for p in points], np.float32).T
    noise = np.random.default_rng(SEED).standard_normal(z.shape, np.float32)
    x = alpha[:, None, None, None] * z + sigma[:, None, None, None] * noise
    return (patchify(x, bundle.latents.patch) if bundle.family == "flux" else x), t


def test_picture(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draws an image (B, 3, H, W) in [-1, 1]: a disc on a coloured gradient, with some grain."""
    batch, channels, height, width = shape
    row, column = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    disc = np.where(row**2 + column**2 < 0.4, 0.8, -0.2)
    planes = np.stack(
        [np.cos(2 * row + plane) * np.sin(column + plane) for plane in range(channels)]
    )
    grain = 0.05 * np.random.default_rng(SEED).standard_normal((batch, *planes.shape))
    return np.clip(0.6 * planes + 0.4 * disc + grain, -1, 1).astype(np.float32)
