"""Arguments of a call that cannot be: refused by name, before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eri_runtime import load
from eri_runtime.errors import NonFiniteError, UsageError
from eri_runtime.latents import latent_shape


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with load(sd35_bundle) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def embeds(pipe):
    """Embeddings of the shapes that the denoiser takes, under a call's names."""
    shapes = {each.name: each.shape for each in pipe.bundle.components["denoiser"].inputs}
    embeds = np.zeros((1, 4, int(shapes["encoder_hidden_states"][-1])), np.float32)
    pooled = np.zeros((1, int(shapes["pooled_projections"][-1])), np.float32)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def test_a_negative_prompt_beside_its_embeddings_is_refused(pipe, embeds):
    negative = {f"negative_{name}": value for name, value in embeds.items()}
    with pytest.raises(UsageError, match=r"^negative_prompt: got negative_prompt and negative_pro"):
        pipe.request("a fox", negative_prompt="blurry", **negative)
    assert pipe.request("a fox", **negative).negative is not None


@pytest.mark.parametrize("make", [np.array, tuple, iter], ids=["array", "tuple", "iterator"])
def test_levels_of_any_kind_are_a_list(pipe, make):
    words = {"num_inference_steps": None, "height": 32, "width": 32, "seed": 0}
    result = pipe("a fox", sigmas=make([1.0, 0.5]), **words)
    assert "Steps: 2, Sampler: Euler, Schedule type: " in result.parameters[0]
    listed = pipe("a fox", sigmas=[1.0, 0.5], **words)
    assert (result.parameters, result.images) == (listed.parameters, listed.images)


@pytest.mark.parametrize("levels", [np.ones((2, 2)), np.array(3.0), np.array(["a"])])
def test_an_array_that_is_no_list_of_levels_is_refused(pipe, levels):
    with pytest.raises(UsageError, match="sigmas"):
        pipe.schedule(pipe.request("a fox", sigmas=levels, num_inference_steps=2))


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        (("a \udcff",), "prompt"),
        ((["a", "\ud800"],), "prompt"),
        (({"a": 1.0, "\ud800": 1.0},), "prompt"),
        (("a", "\ud800"), "prompt_2"),
        (("a", 3), "prompt_2"),
        (("a", [3]), "prompt_2"),
        (("a", "b", ["\ud800"]), "prompt_3"),
    ],
)
def test_a_text_that_is_none_is_refused(pipe, prompts, name):
    with pytest.raises(UsageError, match=f"^{name}: got "):
        pipe.request(*prompts)


def test_integers_of_numpy_are_seeds(pipe):
    assert pipe.request("a", seed=np.int64(5), num_images_per_prompt=2).seeds == (5, 6)
    assert pipe.request(["a", "b"], seed=np.array([5, 9])).seeds == (5, 9)
    assert type(pipe.request("a", seed=np.array(5)).seeds[0]) is int


@pytest.mark.parametrize("seed", [1.5, "5", True, -1, 2**64, [None], np.array([0.5])])
def test_what_is_no_seed_is_refused(pipe, seed):
    with pytest.raises(UsageError, match=r"^seed: got .*, expected an integer, 0 to "):
        pipe.request("a", seed=seed)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "pooled_prompt_embeds"])
@pytest.mark.parametrize("kind", ["float16", "float64", "int64", "bfloat16"])
def test_numbers_of_any_type_become_float32(pipe, embeds, name, kind):
    shape = latent_shape(pipe.bundle.latents, 64, 64)
    given = embeds | {"latents": np.zeros((1, *shape), np.float32), "height": 64, "width": 64}
    given[name] = torch.tensor(given[name]).to(getattr(torch, kind))
    request = pipe.request(**given)
    assert {
        request.latents.dtype,
        request.positive.embeds.dtype,
        request.positive.pooled.dtype,
    } == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "pooled_prompt_embeds"])
@pytest.mark.parametrize("value", ["text", np.array(["text"]), np.ones(3, complex), [[1], [2, 3]]])
def test_what_is_no_array_of_numbers_is_refused(pipe, embeds, name, value):
    with pytest.raises(UsageError, match=name):
        pipe.request(**embeds | {name: value})


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "pooled_prompt_embeds"])
def test_arrays_that_are_not_finite_are_refused(pipe, embeds, name):
    with pytest.raises(NonFiniteError, match=name):
        pipe.request(**embeds | {name: np.full((1, 4, 4), np.nan)})


@pytest.mark.parametrize("threads", [0, -1, 2000, 1.5, "4", True])
def test_a_number_of_threads_that_cannot_be_is_refused(sd35_bundle, threads):
    expected = "^threads: got .*, expected auto or an integer, 1 to 1024"
    with pytest.raises(UsageError, match=expected):
        load(sd35_bundle, threads=threads)


@pytest.mark.parametrize("negative", ["\ud800", 3, [3]])
def test_a_negative_text_that_is_none_is_refused(pipe, negative):
    with pytest.raises(UsageError, match=r"^negative_prompt: got "):
        pipe.request("a", negative_prompt=negative)
