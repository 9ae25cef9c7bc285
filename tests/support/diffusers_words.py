"""Calls of diffusers' pipelines, one for each of their words: the same here, or refused here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH = 32, 48
ALL = ("sdxl", "sd35", "flux")
SEED = 7


def picture(seed: int) -> Image.Image:
    """A picture of coloured blots."""
    blots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    """A mask whose middle is repainted."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[8:24, 12:36] = 255
    return Image.fromarray(values)


def tensor_of(image: Image.Image) -> torch.Tensor:
    """A picture as torch tensor (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]


IMAGE, MASK = picture(0), mask()
BASE = {"prompt": "a red heart", "num_inference_steps": 3}
EDIT = {"image": IMAGE, "strength": 0.7}
PAINT = {"image": IMAGE, "mask_image": MASK, "strength": 0.7}
KINDS = {"text": {}, "edit": EDIT, "paint": PAINT}
SIZE = {"height": HEIGHT, "width": WIDTH}
FAMILY = {
    "sdxl": {"guidance_scale": 5.0},
    "sd35": {"guidance_scale": 5.0, "max_sequence_length": 20},
    "flux": {"guidance_scale": 3.5, "max_sequence_length": 20},
}
NEGATIVE = {"negative_prompt": "blurry"}
SIZES = {"negative_original_size": (16, 20), "negative_target_size": (24, 40)}


@dataclass(frozen=True)
class Case:
    """One call of both libraries.

    Attributes:
        words: The words that it proves.
        both: Keywords of both calls; None takes one away.
        families: Where it is run.
        kinds: Of `text`, `edit` and `paint`, the pipelines that it is run in.
        images: Number of images.
        changes: Whether the words change the picture of the plain call.
    """

    words: tuple[str, ...]
    both: dict[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ALL
    kinds: tuple[str, ...] = ("text",)
    images: int = 1
    changes: bool = True

    @property
    def name(self) -> str:
        """A name for a test."""
        return "+".join(self.words)


def halved(pipe, step, timestep, arrays):
    """A callback that halves the latents after the first step."""
    if step == 0:
        arrays["latents"] = arrays["latents"] * 0.5
    return arrays


def cut_guidance(pipe, step, timestep, arrays):
    """A callback that ends CFG after the first step, as diffusers' guides do."""
    if step == 0:
        pipe._guidance_scale = 0.0
        for name in arrays.keys() - {"latents"}:
            arrays[name] = arrays[name][-1:]
    return arrays


def stopped(pipe, step, timestep, arrays):
    """A callback that stops after the second step."""
    pipe._interrupt = step == 1
    return arrays


TWO = {"prompt": ["a red heart", "two black cats"]}
CFG = {"sdxl": {}, "sd35": {}, "flux": {"true_cfg_scale": 2.5}}
CALLBACK = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
CASES = [
    Case(("prompt", "return_dict"), {"return_dict": False}, kinds=tuple(KINDS), changes=False),
    Case(("prompt_2",), {"prompt_2": "two black cats"}, kinds=tuple(KINDS)),
    Case(("prompt_3",), {"prompt_3": "two black cats"}, ("sd35",), tuple(KINDS)),
    Case(("negative_prompt",), NEGATIVE, kinds=tuple(KINDS)),
    Case(("negative_prompt_2",), {**NEGATIVE, "negative_prompt_2": "a dog"}, kinds=tuple(KINDS)),
    Case(("negative_prompt_3",), {"negative_prompt_3": "a dog"}, ("sd35",), tuple(KINDS)),
    Case(("height", "width"), {"height": 48, "width": 64}),
    Case(("height", "width"), {"height": 48, "width": 64}, ("sd35", "flux"), ("edit",)),
    Case(("height", "width"), {"height": 48, "width": 64}, kinds=("paint",)),
    Case(("num_inference_steps",), {"num_inference_steps": 5}, kinds=tuple(KINDS)),
    Case(
        ("timesteps",),
        {"timesteps": [900, 500, 300, 100], "num_inference_steps": None},
        ("sdxl",),
        tuple(KINDS),
    ),
    Case(("sigmas",), {"sigmas": [9.0, 3.0, 1.0, 0.0]}, ("sdxl",)),
    Case(("sigmas",), {"sigmas": [1.0, 0.6, 0.3]}, ("sd35", "flux"), tuple(KINDS)),
    Case(("denoising_end", "output_type"), {"denoising_end": 0.5, "output_type": "latent"}, ("sdxl",)),
    Case(("denoising_start",), {"denoising_start": 0.4, "strength": None}, ("sdxl",), ("edit", "paint")),
    Case(
        ("denoising_end",),
        {"denoising_start": 0.2, "denoising_end": 0.8, "strength": None},
        ("sdxl",),
        ("edit", "paint"),
    ),
    Case(("guidance_scale",), {"guidance_scale": 2.5}, kinds=tuple(KINDS)),
    Case(("true_cfg_scale",), {**NEGATIVE, "true_cfg_scale": 4.0}, ("flux",), tuple(KINDS)),
    Case(("num_images_per_prompt",), {"num_images_per_prompt": 2}, images=2, changes=False),
    # diffusers' pipelines that start from pictures take one for each generator
    Case(
        ("num_images_per_prompt", "image"),
        {"num_images_per_prompt": 2, "image": [IMAGE, picture(1)]},
        kinds=("edit", "paint"),
        images=2,
    ),
    Case(("eta",), {"eta": 0.0}, ("sdxl",), tuple(KINDS), changes=False),
    Case(("output_type",), {"output_type": "pt"}, kinds=("text", "edit"), changes=False),
    Case(("output_type",), {"output_type": "latent"}, kinds=("paint",), changes=False),
    Case(("cross_attention_kwargs",), {"cross_attention_kwargs": {"scale": 0.5}}, ("sdxl",), tuple(KINDS), changes=False),
    Case(("joint_attention_kwargs",), {"joint_attention_kwargs": {"scale": 0.5}}, ("sd35", "flux"), tuple(KINDS), changes=False),
    Case(("guidance_rescale",), {"guidance_rescale": 0.7}, ("sdxl",), tuple(KINDS)),
    Case(("original_size",), {"original_size": (16, 24)}, ("sdxl",), tuple(KINDS)),
    Case(("target_size",), {"target_size": (64, 24)}, ("sdxl",), tuple(KINDS)),
    Case(("crops_coords_top_left",), {"crops_coords_top_left": (3, 9)}, ("sdxl",), tuple(KINDS)),
    Case(("negative_original_size", "negative_target_size"), SIZES, ("sdxl",), tuple(KINDS)),
    Case(("negative_crops_coords_top_left",), {**SIZES, "negative_crops_coords_top_left": (5, 2)}, ("sdxl",)),
    Case(
        ("negative_crops_coords_top_left",),
        {"negative_crops_coords_top_left": (0, 0), "crops_coords_top_left": (3, 9)},
        ("sdxl",),
        ("edit", "paint"),
    ),
    Case(("clip_skip",), {"clip_skip": 0}, ("sdxl", "sd35"), tuple(KINDS), changes=False),
    Case(("max_sequence_length",), {"max_sequence_length": 12}, ("sd35", "flux"), tuple(KINDS)),
    Case(CALLBACK, {"callback_on_step_end": halved}, kinds=tuple(KINDS)),
    Case(("callback_on_step_end",), {"callback_on_step_end": stopped, "num_inference_steps": 5, "output_type": "latent"}, kinds=tuple(KINDS)),
    Case(
        CALLBACK,
        {"callback_on_step_end": cut_guidance, CALLBACK[1]: ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]},
        ("sdxl",),
    ),
    Case(
        CALLBACK,
        {"callback_on_step_end": cut_guidance, CALLBACK[1]: ["prompt_embeds", "pooled_prompt_embeds"]},
        ("sd35",),
    ),
    Case(("image",), {"image": tensor_of(IMAGE)}, kinds=("edit",), changes=False),
    Case(("image",), {"image": picture(1)}, kinds=("paint",)),
    Case(("strength",), {"strength": 0.4}, kinds=("edit", "paint")),
    Case(("mask_image",), {"mask_image": Image.new("L", (WIDTH, HEIGHT), 255)}, kinds=("paint",)),
    # diffusers' SD3 forgets the VAE's shift when it paints: its pixels, which this needs, are wrong
    Case(("padding_mask_crop",), {"padding_mask_crop": 4, "output_type": "pil"}, ("sdxl", "flux"), ("paint",)),
]  # fmt: skip

# words that diffusers' pipelines take and that are refused here, with a value for each
REFUSED = {
    "ip_adapter_image": IMAGE,
    "ip_adapter_image_embeds": [np.zeros((1, 1, 4), np.float32)],
    "negative_ip_adapter_image": IMAGE,
    "negative_ip_adapter_image_embeds": [np.zeros((1, 1, 4), np.float32)],
    "skip_guidance_layers": [1],
    "skip_layer_guidance_scale": 2.0,
    "skip_layer_guidance_stop": 0.3,
    "skip_layer_guidance_start": 0.02,
    "aesthetic_score": 6.0,
    "negative_aesthetic_score": 2.5,
    "masked_image_latents": np.zeros((1, 4, 4, 4), np.float32),
}
# proven by tests of their own in the same file
OWN_TESTS = (
    *("generator", "latents", "mu", "prompt_embeds", "pooled_prompt_embeds"),
    *("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
)
