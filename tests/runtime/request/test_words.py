"""Words of diffusers that cannot be, and words that nobody has: refused by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import eri_runtime as eri
from eri_runtime.errors import EriError, UnknownNameError, UsageError

IMAGE = np.zeros((32, 32, 3), np.uint8)
SMALL = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def pipes(request):
    made = {}

    def pipe(family):
        if family not in made:
            made[family] = eri.load(request.getfixturevalue(f"{family}_bundle"), "cpu")
        return made[family]

    yield pipe
    for each in made.values():
        each.close()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("guidance_scal", "guidance_scale"),
        ("num_steps", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"),
        ("negativ_prompt", "negative_prompt"),
        ("on_stp", "on_step"),
        ("heigth", "height"),
    ],
)
def test_an_unknown_word_gets_the_nearest_and_no_list(pipes, word, meant):
    with pytest.raises(UnknownNameError, match=f"did you mean `{meant}`") as error:
        pipes("sd35").request("a", **{word: 1})
    assert len(str(error.value)) < 200


def test_a_word_like_none_gets_no_guess(pipes):
    with pytest.raises(UnknownNameError, match=r"Words lists$"):
        pipes("sd35").request("a", qqqqqqqq=1)


REFUSED = [
    ("sdxl", {"prompt_3": "x"}, "prompt_3: got a text for a third encoder of sdxl"),
    ("flux", {"negative_prompt_3": "x"}, "negative_prompt_3: got a text for a third"),
    ("sdxl", {"prompt_2": ["x", "y"]}, "prompt_2: got 2 texts, expected 1 or 1"),
    ("sdxl", {"prompt_2": 3}, "prompt_2: got 3"),
    ("sdxl", {"negative_prompt_2": "x"}, "negative_prompt_2: got no negative_prompt beside it"),
    ("flux", {"negative_prompt_2": "x"}, "negative_prompt_2: got no negative_prompt beside it"),
    ("sdxl", {"original_size": 3}, "original_size: got 3, expected two numbers"),
    ("sdxl", {"target_size": (1, 2, 3)}, "target_size: got 3 of them"),
    ("sdxl", {"crops_coords_top_left": (1, None)}, "crops_coords_top_left: got None"),
    ("flux", {"original_size": (1, 2)}, "original_size: got it with a bundle of the flux"),
    ("sdxl", {"negative_original_size": (1, 2)}, "negative_original_size and negative_target_s"),
    ("sdxl", {"negative_crops_coords_top_left": (1, 2)}, "negative_crops_coords_top_left: got a"),
    ("sdxl", {"clip_skip": 1}, "clip_skip: got 1, expected 0, as the text encoders' graphs end"),
    ("sdxl", {"clip_skip": True}, "clip_skip: got True"),
    ("sdxl", {"timesteps": [1, 2]}, "timesteps: got .*each less than the one before, 0 to 999"),
    ("sd35", {"timesteps": [1000, 0]}, "timesteps: got 0, .*more than 0 to 1000"),
    ("sdxl", {"timesteps": []}, "timesteps: got"),
    ("sdxl", {"timesteps": 3}, "timesteps: got 3"),
    ("sdxl", {"timesteps": [9], "sigmas": [1]}, "timesteps: got timesteps and sigmas"),
    ("sdxl", {"timesteps": [9, 5], "num_inference_steps": 3}, "num_inference_steps: got 3, exp"),
    ("sdxl", {"denoising_end": 0}, "denoising_end: got 0, expected more than 0"),
    ("sdxl", {"denoising_end": 1.0}, "denoising_end: got 1.0"),
    ("sdxl", {"denoising_start": 0.5}, "denoising_start: got no image"),
    (
        "sdxl",
        {"denoising_start": 0.5, "denoising_end": 0.5, "image": IMAGE},
        "denoising_start: got 0.5, expected less than denoising_end",
    ),
    ("sdxl", {"denoising_start": 0.5, "strength": 0.5, "image": IMAGE}, "strength: got it with"),
    ("sdxl", {"mu": 1.0}, "mu: got it with a checkpoint whose shift"),
    ("flux", {"mu": "x"}, "mu: got 'x'"),
    ("sdxl", {"generator": 1, "seed": 2}, "generator: got generator and seed, expected one of"),
    ("sdxl", {"generator": 1, "noise": "philox"}, "generator: got generator and noise"),
    (
        "sdxl",
        {"generator": 1, "image": IMAGE, "num_images_per_prompt": 2},
        "generator: got one for 2 edited images, expected one per image",
    ),
    ("sdxl", {"cross_attention_kwargs": {"gligen": 1}}, "cross_attention_kwargs: got 'gligen'"),
    ("sdxl", {"cross_attention_kwargs": 3}, "cross_attention_kwargs: got 3"),
    ("sdxl", {"joint_attention_kwargs": {"scale": "x"}}, r'joint_attention_kwargs\["scale"\]'),
    ("sdxl", {"callback": print}, "callback: got .*pass callback_on_step_end="),
    ("sdxl", {"image": np.zeros((1, 4, 5, 5), np.float32), **SMALL}, "image: got .1, 4, 5, 5."),
    (
        "sdxl",
        {"image": np.zeros((1, 4, 16, 16), np.float32), "mask": IMAGE[..., 0], "overlay": True},
        "overlay: got latents as the image",
    ),
]


@pytest.mark.parametrize(("family", "words", "says"), REFUSED)
def test_what_cannot_be_is_refused_by_its_name(pipes, family, words, says):
    pipe = pipes(family)
    with pytest.raises(EriError, match=f"^{says}"):
        pipe.schedule(pipe.request("a", **words))


def test_a_text_per_encoder_needs_plain_prompts_and_no_embeddings(pipes):
    with pytest.raises(UsageError, match="texts with weights and a text for one encoder"):
        pipes("sdxl").request({"a": 0.5, "b": 0.5}, prompt_2="c")
    pair = pipes("sdxl").encode_prompt("a")
    embeds = {"prompt_embeds": pair.embeds, "pooled_prompt_embeds": pair.pooled}
    with pytest.raises(UsageError, match="prompt_2: got prompt_2 and prompt_embeds"):
        pipes("sdxl").request(prompt_2="c", **embeds)


def test_limits_of_texts_count_every_encoders(pipes):
    words = {"prompt_2": ["b", "bb"], "prompt_3": "c", "negative_prompt": "d"}
    request = pipes("sd35").request(["a", "aa"], negative_prompt_3="e", **words)
    assert set(request.texts) == {"a", "aa", "b", "bb", "c", "d", "e"}
    same = pipes("sd35").request("a", prompt_2="", prompt_3=None)
    assert str(same.prompts[0]) == "a"


def test_texts_of_encoders_stand_in_the_parameters(pipes):
    words = {"num_inference_steps": 1, **SMALL, "seed": 0, "output_type": "latent"}
    text = pipes("sdxl")("a", **words, prompt_2="b, c", target_size=(9, 8)).parameters[0]
    assert 'Prompt 2: "b, c"' in text
    assert 'Size conditions: "[32.0, 32.0, 0.0, 0.0, 9.0, 8.0]"' in text


def test_a_lists_levels_on_a_flow_are_shifted_and_its_timesteps_are_not(pipes):
    pipe = pipes("sd35")
    shift = pipe.bundle.schedule.shift
    assert shift != 1
    shifted = pipe.schedule(pipe.request("a", sigmas=[1.0, 0.5, 0.0])).sigma
    np.testing.assert_allclose(shifted, [1, shift * 0.5 / (1 + (shift - 1) * 0.5), 0])
    exact = pipe.schedule(pipe.request("a", timesteps=[1000, 500])).sigma
    np.testing.assert_allclose(exact, [1, 0.5, 0])


def test_tensors_are_pictures_and_masks(pipes):
    unit = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    tensor = torch.from_numpy(unit).permute(2, 0, 1)
    mask = np.zeros((32, 32), np.float32)
    mask[8:20] = 1
    plain = pipes("sdxl").request("a", image=unit, mask=mask, seed=0).edit
    for image in (tensor, tensor[None], tensor * 2 - 1, [tensor]):
        for each in (torch.from_numpy(mask), torch.from_numpy(mask)[None, None]):
            edit = pipes("sdxl").request("a", image=image, mask_image=each, seed=0).edit
            np.testing.assert_allclose(edit.pixels, plain.pixels, atol=1e-6)
            np.testing.assert_array_equal(edit.mask, plain.mask)


def test_pt_without_torch_says_so(sd35_bundle):
    code = """
import sys, eri_runtime as eri
with eri.load(sys.argv[1]) as pipe:
    try:
        pipe.request("a", output_type="pt", generator=3)
    except eri.EriError as error:
        print(error)
    pipe("a", generator=3, num_inference_steps=1, height=32, width=32)
    assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(sd35_bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("output_type: got 'pt', and torch is not imported, expected pil")
