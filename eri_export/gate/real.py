"""Inputs as a generation has them: prompts, a picture, and noisy latents in between.

Drawn inputs find a wrong operator; real ones also meet the activations the network was trained to
have, which is where 16 bits overflow. What one component makes of them is what the next is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from eri_export.recipes.base import Arrays, Recipe
from eri_runtime.conditioning import NEEDED, TextEncoders, condition_inputs, shared_inputs
from eri_runtime.latents import Array, from_vae, patchify, token_count
from eri_runtime.schedule import make_schedule
from eri_runtime.spec import Bundle
from eri_runtime.text import PromptTokenizer

PROMPTS = ("a red fox in the snow", "")
GUIDANCE = 3.5  # for a denoiser that embeds it
STEPS = 4  # the points of the schedule that the rows of a batch go through
SEED = 0


def real_inputs(bundle: Bundle, recipe: Recipe, made: Mapping[str, Arrays]) -> Arrays | None:
    """The inputs of a component, from what earlier ones `made` of theirs; None where one is absent.

    `bundle` holds tokenizers and schedule, and the components so far.
    """
    if recipe.name.startswith("text_encoder"):
        return {"input_ids": _token_ids(bundle, recipe)}
    if recipe.name == "vae_encoder":
        (spec,) = (each.spec for each in recipe.inputs)
        return {spec.name: picture(recipe.first_shape(spec))}
    if recipe.name == "vae_decoder":
        return {"latents": made["vae_encoder"]["mean"]}
    return _denoiser(bundle, recipe, made)


def _token_ids(bundle: Bundle, recipe: Recipe) -> NDArray[np.int64]:
    (spec,) = (each.spec for each in recipe.inputs)
    batch, length = recipe.first_shape(spec)
    tokenizer = PromptTokenizer(bundle, recipe.name.replace("text_encoder", "tokenizer"))
    return tokenizer(list(islice(cycle(PROMPTS), batch)), length)


def _denoiser(bundle: Bundle, recipe: Recipe, made: Mapping[str, Arrays]) -> Arrays | None:
    """Rows of noise and picture at different points of the schedule, under different prompts."""
    if not {*NEEDED, "vae_encoder"} <= made.keys():
        return None
    rows = np.arange(recipe.sizes[0]["batch"])
    made = {
        component: {name: value[rows % len(value)] for name, value in outputs.items()}
        for component, outputs in made.items()
    }
    longest = max(name for name in made if name.startswith("text_encoder"))
    tokens = made[longest]["hidden_states"].shape[1]
    z = from_vae(bundle.latents, made["vae_encoder"]["mean"])
    height, width = (size * bundle.latents.factor for size in z.shape[2:])
    prompts = list(islice(cycle(PROMPTS), len(z)))
    condition = TextEncoders(bundle, lambda name, _: dict(made[name]))(prompts, tokens)
    sample, timestep = _noisy(bundle, z, token_count(bundle.latents, height, width))
    guidance = np.full(len(sample), GUIDANCE, np.float32)
    given = condition_inputs(bundle, condition, height, width, guidance)
    shared = shared_inputs(bundle, height, width, condition.embeds.shape[1])
    named = {"sample": sample, "timestep": timestep, **given, **shared}
    inputs = {each.spec.name: named[each.spec.name] for each in recipe.inputs}
    sizes = recipe.sizes_of(inputs)
    return inputs if all(sizes[name] == size for name, size in recipe.constants.items()) else None


def _noisy(bundle: Bundle, z: Array, tokens: int) -> tuple[Array, Array]:
    """x = alpha·z + sigma·noise and t, a later point of the schedule for each row."""
    schedule = make_schedule(bundle.schedule, STEPS, tokens, whole_t=False)
    points = [schedule[1 + row % (STEPS - 1)] for row in range(len(z))]
    alpha, sigma, t = np.array([[p.alpha, p.sigma, p.t] for p in points], np.float32).T
    noise = np.random.default_rng(SEED).standard_normal(z.shape, np.float32)
    x = alpha[:, None, None, None] * z + sigma[:, None, None, None] * noise
    return (patchify(x, bundle.latents.patch) if bundle.family == "flux" else x), t


def picture(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(B, 3, H, W) in [-1, 1]: a disc before a coloured gradient, with a grain."""
    batch, channels, height, width = shape
    row, column = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    disc = np.where(row**2 + column**2 < 0.4, 0.8, -0.2)
    planes = np.stack(
        [np.cos(2 * row + plane) * np.sin(column + plane) for plane in range(channels)]
    )
    grain = 0.05 * np.random.default_rng(SEED).standard_normal((batch, *planes.shape))
    return np.clip(0.6 * planes + 0.4 * disc + grain, -1, 1).astype(np.float32)
