"""The part of AUTOMATIC1111's API that clients call, under `/sdapi/v1`.

`a1111_models` has the bodies, `a1111_words` turns them into requests, `a1111_lists` has what
clients list, `a1111_jobs` the progress of what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http import a1111_lists
from eri_runtime.serve.http.a1111_jobs import Jobs
from eri_runtime.serve.http.a1111_models import ImageToImage, PngInfo, TextToImage, check_possible
from eri_runtime.serve.http.a1111_options import Options
from eri_runtime.serve.http.a1111_reply import reply_of
from eri_runtime.serve.http.a1111_words import image_words, text_request
from eri_runtime.serve.http.infotext import parameters_of, parse_parameters
from eri_runtime.serve.http.pictures import encode, read_base64, to_base64
from eri_runtime.serve.http.running import finish, timeout_of
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.status import Model


def router(engine: Engine) -> APIRouter:
    """Returns the routes under `/sdapi/v1`.

    Args:
        engine: The engine that makes the pictures.
    """
    routes = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"])
    options, jobs = Options(engine), Jobs()
    _add_generation(routes, _Drawing(engine, options, jobs))
    _add_png_info(routes)
    _add_jobs(routes, jobs)
    _add_options(routes, options)
    a1111_lists.add_lists(routes, engine, options)
    return routes


@dataclass(frozen=True)
class _Drawing:
    """What it takes to answer a request for pictures."""

    engine: Engine
    options: Options
    jobs: Jobs

    async def reply(
        self, request: Request, body: TextToImage, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Makes the pictures of a body, with keywords beside its own, and returns the reply."""
        model = self.options.checked(body.override_settings or {})
        asked = _asked(request, body, model, self.engine)
        asked = replace(asked, words={**asked.words, **extra})
        submission = await self.engine.submit_async(asked)
        if not body.override_settings_restore_afterwards:
            self.options.model = model
        with self.jobs.tracked(submission) as job:
            pictures = await finish(request, job)
        return await reply_of(body, asked, model, pictures)


def _add_generation(routes: APIRouter, drawing: _Drawing) -> None:
    """Adds what makes pictures."""

    @routes.post("/txt2img")
    async def txt2img(request: Request, body: TextToImage) -> dict[str, Any]:
        """Makes pictures from a prompt."""
        check_possible(body)
        return await drawing.reply(request, body, {})

    @routes.post("/img2img")
    async def img2img(request: Request, body: ImageToImage) -> dict[str, Any]:
        """Makes pictures from a prompt and a picture, of all of it or where a mask is white."""
        check_possible(body)
        most = request.app.state.options.upload_pixels
        pictures = drawing.engine.options.limits.pictures
        extra = await asyncio.to_thread(image_words, body, most, pictures)
        return await drawing.reply(request, body, extra)


def _add_png_info(routes: APIRouter) -> None:
    """Adds what reads a picture's parameters."""

    @routes.post("/png-info")
    async def png_info(request: Request, body: PngInfo) -> dict[str, Any]:
        """Reads the parameters of a picture."""
        most = request.app.state.options.upload_pixels
        image = await asyncio.to_thread(read_base64, "image", body.image, most)
        items = {name: text for name, text in image.info.items() if isinstance(text, str)}
        info = parameters_of(image)
        return {"info": info, "items": items, "parameters": parse_parameters(info) if info else {}}


def _asked(request: Request, body: TextToImage, model: Model, engine: Engine) -> PictureRequest:
    """Returns the request for the engine; raises 404 for an unknown sampler, as AUTOMATIC1111."""
    most = engine.options.limits.prompt
    if len(body.prompt) > most:  # before tags are searched in it
        raise UsageError("prompt", got=f"{len(body.prompt)} characters", expected=f"at most {most}")
    try:
        asked = text_request(body, model, engine.options.loras)
    except UnknownNameError as error:
        if error.offender != "sampler_name":
            raise
        raise HTTPException(404, f"Sampler not found: {error}") from error
    limit = timeout_of(request)
    return asked if limit is None else replace(asked, timeout=limit)


def _add_jobs(routes: APIRouter, jobs: Jobs) -> None:
    """Adds what clients ask and say while a picture is being made."""

    @routes.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """Tells how far the oldest request is, with its last preview."""
        state, job = jobs.state(), jobs.oldest
        preview = None
        if job is not None and job.preview is not None and not skip_current_image:
            preview = to_base64(await encode(job.preview))
        return {**state, "current_image": preview}

    @routes.post("/interrupt")
    async def interrupt() -> dict[str, Any]:
        """Cancels all requests of this API."""
        jobs.interrupt()
        return {}

    @routes.post("/skip")
    async def skip() -> dict[str, Any]:
        """Cancels the oldest request of this API."""
        jobs.skip()
        return {}


def _add_options(routes: APIRouter, options: Options) -> None:
    """Adds the options."""

    @routes.get("/options")
    async def get_options() -> dict[str, Any]:
        """Returns the options, of which only `sd_model_checkpoint` can be changed."""
        return options.shown()

    @routes.post("/options")
    async def set_options(given: dict[str, Any]) -> None:
        """Chooses the model of the requests to come; takes all of what the other route returns."""
        options.model = options.checked(given)
