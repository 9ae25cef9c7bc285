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
        return "+".join(self.words[:3])


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


CFG = {"sdxl": {}, "sd35": {}, "flux": {"true_cfg_scale": 2.5}}
CALLBACK = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
TENSORS = {
    "sdxl": ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"],
    "sd35": ["prompt_embeds", "pooled_prompt_embeds"],
}
SDXL, SD35, FLUX = ("sdxl",), ("sd35",), ("flux",)
FLOWS, EDITS = ("sd35", "flux"), ("edit", "paint")
CROP = "crops_coords_top_left"
SCALE = {"scale": 0.5}
SOME = {
    "prompt_2": "two black cats",
    "negative_prompt": "blurry",
    "negative_prompt_2": "a dog",
    "return_dict": False,
    "callback_on_step_end": halved,
    "callback_on_step_end_tensor_inputs": ["latents"],
}
# words of the pipelines that start from a picture: all together, as each changes a text's picture
TOGETHER = {
    "sdxl": {
        **SOME,
        "num_inference_steps": 4,
        "guidance_scale": 2.5,
        "eta": 0.0,
        "cross_attention_kwargs": SCALE,
        "guidance_rescale": 0.7,
        "original_size": (16, 24),
        "target_size": (64, 24),
        CROP: (3, 9),
        **SIZES,
        f"negative_{CROP}": (0, 0),
        "clip_skip": 0,
    },
    "sd35": {
        **SOME,
        "prompt_3": "a fox",
        "negative_prompt_3": "a lake",
        "num_inference_steps": 4,
        "sigmas": [1.0, 0.7, 0.4, 0.2],
        "guidance_scale": 2.5,
        "joint_attention_kwargs": SCALE,
        "clip_skip": 0,
        "max_sequence_length": 12,
    },
    "flux": {
        **SOME,
        "true_cfg_scale": 4.0,
        "num_inference_steps": 4,
        "sigmas": [1.0, 0.7, 0.4, 0.2],
        "guidance_scale": 2.0,
        "joint_attention_kwargs": SCALE,
        "max_sequence_length": 12,
    },
}
CASES = [
    Case(("prompt", "return_dict"), {"return_dict": False}, changes=False),
    Case(("prompt_2",), {"prompt_2": "two black cats"}),
    Case(("prompt_3",), {"prompt_3": "two black cats"}, SD35),
    Case(("negative_prompt",), NEGATIVE),
    Case(("negative_prompt_2",), {**NEGATIVE, "negative_prompt_2": "a dog"}),
    Case(("negative_prompt_3",), {"negative_prompt_3": "a dog"}, SD35),
    Case(("height", "width"), {"height": 48, "width": 64}),
    Case(("height", "width"), {"height": 48, "width": 64}, FLOWS, ("edit",)),
    Case(("height", "width"), {"height": 48, "width": 64}, kinds=("paint",)),
    Case(("num_inference_steps",), {"num_inference_steps": 5}),
    Case(
        ("timesteps",),
        {"timesteps": [900, 500, 300, 100], "num_inference_steps": None},
        SDXL,
        tuple(KINDS),
    ),
    Case(("sigmas",), {"sigmas": [9.0, 3.0, 1.0, 0.0]}, SDXL, tuple(KINDS)),
    Case(("sigmas",), {"sigmas": [1.0, 0.6, 0.3]}, FLOWS),
    Case(("denoising_end",), {"denoising_end": 0.5, "output_type": "latent"}, SDXL),
    Case(("denoising_start",), {"denoising_start": 0.4, "strength": None}, SDXL, EDITS),
    Case(
        ("denoising_start", "denoising_end"),
        {
            "denoising_start": 0.2,
            "denoising_end": 0.8,
            "strength": None,
            "num_inference_steps": 5,
            "output_type": "latent",
        },
        SDXL,
        EDITS,
    ),
    Case(("guidance_scale",), {"guidance_scale": 2.5}),
    Case(("true_cfg_scale",), {**NEGATIVE, "true_cfg_scale": 4.0}, FLUX),
    Case(("num_images_per_prompt",), {"num_images_per_prompt": 2}, images=2, changes=False),
    # diffusers' pipelines that start from pictures take one for each generator
    Case(
        ("num_images_per_prompt", "image"),
        {"num_images_per_prompt": 2, "image": [IMAGE, picture(1)]},
        kinds=EDITS,
        images=2,
    ),
    Case(("eta",), {"eta": 0.0}, SDXL, changes=False),
    Case(("output_type",), {"output_type": "pt"}, changes=False),
    Case(("output_type",), {"output_type": "latent"}, kinds=EDITS, changes=False),
    Case(("cross_attention_kwargs",), {"cross_attention_kwargs": SCALE}, SDXL, changes=False),
    Case(
        ("joint_attention_kwargs",),
        {"joint_attention_kwargs": SCALE},
        FLOWS,
        changes=False,
    ),
    Case(("guidance_rescale",), {"guidance_rescale": 0.7}, SDXL),
    Case(("original_size",), {"original_size": (16, 24)}, SDXL),
    Case(("target_size",), {"target_size": (64, 24)}, SDXL),
    Case((CROP,), {CROP: (3, 9)}, SDXL),
    Case(("negative_original_size", "negative_target_size"), SIZES, SDXL),
    Case((f"negative_{CROP}",), {**SIZES, f"negative_{CROP}": (5, 2)}, SDXL),
    Case(("clip_skip",), {"clip_skip": 0}, ("sdxl", "sd35"), changes=False),
    Case(("max_sequence_length",), {"max_sequence_length": 12}, FLOWS),
    Case(CALLBACK, {CALLBACK[0]: halved, CALLBACK[1]: ["latents"]}),
    Case(CALLBACK[:1], {CALLBACK[0]: stopped, "num_inference_steps": 5, "output_type": "latent"}),
    *(
        Case(CALLBACK, {CALLBACK[0]: cut_guidance, CALLBACK[1]: names}, (family,))
        for family, names in TENSORS.items()
    ),
    Case(("image",), {"image": tensor_of(IMAGE)}, kinds=("edit",), changes=False),
    Case(("strength",), {"strength": 0.4}, kinds=EDITS),
    Case(("mask_image",), {"mask_image": Image.new("L", (WIDTH, HEIGHT), 255)}, kinds=("paint",)),
    # diffusers' SD3 forgets the VAE's shift when it paints, so that its pixels are other ones
    Case(
        ("padding_mask_crop",),
        {"padding_mask_crop": 4, "output_type": "pil"},
        ("sdxl", "flux"),
        ("paint",),
    ),
    *(Case(("prompt", *both), both, (family,), EDITS) for family, both in TOGETHER.items()),
]

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
