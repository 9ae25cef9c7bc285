"""The reply to `/txt2img` and `/img2img`."""

from __future__ import annotations

import json
import time
from typing import Any

from eri_runtime.sampling import SAMPLERS
from eri_runtime.serve.http.a1111_models import ImageToImage, TextToImage
from eri_runtime.serve.http.a1111_options import sha256_of
from eri_runtime.serve.http.pictures import encode_all, to_base64
from eri_runtime.serve.messages import PictureRequest, Pictures
from eri_runtime.serve.status import Model


async def reply_of(
    body: TextToImage, asked: PictureRequest, model: Model, pictures: Pictures
) -> dict[str, Any]:
    """Returns the reply: pictures that carry their parameters, the body, and `info` as JSON.

    Args:
        body: The client's body.
        asked: The request that was made of it.
        model: The model that ran.
        pictures: What the engine returned.
    """
    files = await encode_all(pictures.images, pictures.parameters) if body.send_images else []
    return {
        "images": [to_base64(file) for file in files],
        "parameters": _repeated(body),
        "info": json.dumps(_info(body, asked, model, pictures)),
    }


def _repeated(body: TextToImage) -> dict[str, Any]:
    """Returns the body, without its pictures unless it asks for them."""
    fields = body.model_dump(mode="json")
    if isinstance(body, ImageToImage) and not body.include_init_images:
        fields |= {"init_images": None, "mask": None}
    return fields


def _info(
    body: TextToImage, asked: PictureRequest, model: Model, pictures: Pictures
) -> dict[str, Any]:
    """Returns what AUTOMATIC1111 tells of the pictures, with the values that were used."""
    words, defaults = asked.words, model.bundle.defaults
    count, size = len(pictures.images), pictures.images[0].size
    negative = body.negative_prompt or ""
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": pictures.seeds[0],
        "all_seeds": list(pictures.seeds),
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": size[0],
        "height": size[1],
        "sampler_name": SAMPLERS[words.get("sampler", defaults.sampler)].label,
        "cfg_scale": words.get("guidance_scale", defaults.guidance_scale),
        "steps": words.get("num_inference_steps", defaults.num_inference_steps),
        "batch_size": body.batch_size,
        "denoising_strength": words.get("strength"),
        "sd_model_name": model.name,
        "sd_model_hash": sha256_of(model)[:10],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "index_of_first_image": 0,
        "infotexts": list(pictures.parameters),
    }
