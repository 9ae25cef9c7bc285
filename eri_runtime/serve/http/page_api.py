"""What the page at `/` asks for: `/eri/v1/page`, and `/eri/v1/generate` with an event a step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from eri_runtime.checks import integer
from eri_runtime.latents import ENCODER, latent_side_range
from eri_runtime.sampling import MAX_SEED, SigmaName, samplers_for
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.openai_fields import Text
from eri_runtime.serve.http.pictures import (
    MEDIA_TYPES,
    Format,
    encode_all,
    read_base64,
    to_base64,
)
from eri_runtime.serve.http.running import events, timeout_of
from eri_runtime.serve.http.sse import Frames, event_stream, frame
from eri_runtime.serve.messages import Event, PictureRequest, Pictures
from eri_runtime.serve.status import Model
from eri_runtime.serve.submission import Submission

PREVIEWS = 20  # at most
QUALITY = 85  # of a preview's JPEG
PADDING = 32  # pixels around the mask, if only what is around it is drawn
# as text too: a seed may be larger than JavaScript's exact integers
Seed = int | Annotated[str, Field(pattern="^[0-9]{1,20}$")]


class Drawing(BaseModel):
    """What the page sends. A field that is null has the bundle's default.

    Attributes:
        model: Name of the bundle.
        prompt: The prompt.
        negative_prompt: What to avoid.
        width: Width in pixels.
        height: Height in pixels.
        n: Number of pictures.
        seed: Seed of the first picture.
        steps: Number of steps.
        guidance_scale: As in a call of `Pipeline`.
        sampler: Name of a sampler.
        sigmas: Name of a spacing of the noise levels.
        loras: Weights by name.
        image: The picture to start from, as base64 or a data URL.
        mask: What to repaint of it: white.
        strength: Share of the steps that is run on it.
        only_masked: Whether only the part around the mask is drawn, in full size.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    model: Text = ""
    prompt: Text = ""
    negative_prompt: Text | None = None
    width: int | None = None
    height: int | None = None
    n: int | None = None
    seed: Seed | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: Text | None = None
    sigmas: Text | None = None
    loras: dict[Text, float] = Field(default_factory=dict)
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    only_masked: bool = False


def router(engine: Engine) -> APIRouter:
    """Returns the page's routes.

    Args:
        engine: The engine that makes the pictures.
    """
    routes = APIRouter(prefix="/eri/v1", tags=["page"])

    @routes.get("/page")
    async def page() -> dict[str, Any]:
        """Describes the models, with their defaults and limits, and the LoRAs."""
        limits = engine.options.limits
        return {
            "models": [_described(model) for model in engine.models.values()],
            "sigmas": get_args(SigmaName),
            "loras": list(engine.options.loras),
            "limits": {"steps": limits.steps, "pictures": limits.pictures},
        }

    @routes.post("/generate", response_class=StreamingResponse)
    async def generate(request: Request, drawing: Drawing) -> StreamingResponse:
        """Draws; sends `progress` after each step, with previews now and then, then `pictures`.

        What goes wrong later is the event `error`, with OpenAI's error object. A client that
        disconnects cancels.
        """
        asked = await _asked(request, drawing)
        submission = await engine.submit_async(asked)
        return await event_stream(_frames(request, submission))

    return routes


def _described(model: Model) -> dict[str, Any]:
    """Returns what the page shows of a model."""
    bundle, defaults = model.bundle, model.bundle.defaults
    factor = bundle.latents.factor
    ranges = {side: latent_side_range(bundle, side) for side in ("width", "height")}
    return {
        "name": model.name,
        "sampler": defaults.sampler,
        "steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "width": defaults.width,
        "height": defaults.height,
        "multiple": factor * bundle.latents.patch,
        "sides": {
            side: {"least": each.min * factor, "most": each.max * factor}
            for side, each in ranges.items()
        },
        "samplers": [
            {"name": each.name, "label": each.label} for each in samplers_for(bundle.schedule.kind)
        ],
        "edits": ENCODER in bundle.components,
        "embeds_guidance": bundle.guidance_embedding,
    }


async def _asked(request: Request, drawing: Drawing) -> PictureRequest:
    """Returns the request for the engine."""
    words: dict[str, Any] = {
        "width": drawing.width,
        "height": drawing.height,
        "num_images_per_prompt": drawing.n,
        "seed": None if drawing.seed is None else _seed(drawing.seed),
        "num_inference_steps": drawing.steps,
        "guidance_scale": drawing.guidance_scale,
        "sampler": drawing.sampler,
        "sigmas": drawing.sigmas,
        "strength": drawing.strength,
        "padding_mask_crop": PADDING if drawing.only_masked else None,
    }
    words |= await asyncio.to_thread(_pictures, drawing, request.app.state.options.upload_pixels)
    return PictureRequest(
        model=drawing.model,
        prompt=drawing.prompt,
        negative_prompt=drawing.negative_prompt or None,
        words={name: value for name, value in words.items() if value is not None},
        loras=drawing.loras,
        previews=PREVIEWS,
        timeout=timeout_of(request),
    )


def _pictures(drawing: Drawing, most: int) -> dict[str, Any]:
    """Reads the picture and the mask; returns the words for them."""
    words: dict[str, Any] = {}
    if drawing.image is not None:
        words["image"] = read_base64("image", drawing.image, most).convert("RGB")
    if drawing.mask is not None:
        words["mask"] = read_base64("mask", drawing.mask, most).convert("L")
        words["overlay"] = True
    return words


def _seed(seed: int | str) -> int:
    """Returns a seed as an integer; raises `UsageError` if it is out of range."""
    return integer("seed", int(seed), 0, MAX_SEED)


async def _frames(request: Request, submission: Submission) -> Frames:
    """Yields the events of a request as server-sent events."""
    async for event in events(request, submission):
        yield await _frame(event)


async def _frame(event: Event) -> bytes:
    """Returns one event of the engine as a server-sent event."""
    if isinstance(event, Pictures):
        files = await encode_all(event.images, event.parameters)
        seeds = [str(seed) for seed in event.seeds]  # larger than JavaScript's exact integers
        told = {"images": _urls(files), "seeds": seeds, "parameters": list(event.parameters)}
        return frame("pictures", told)
    previews = _urls(await encode_all(event.images, form="jpeg", quality=QUALITY), "jpeg")
    return frame("progress", {"step": event.step, "total": event.total, "images": previews})


def _urls(files: Sequence[bytes], form: Format = "png") -> list[str]:
    """Returns the contents of files as data URLs."""
    return [f"data:{MEDIA_TYPES[form]};base64,{to_base64(file)}" for file in files]
