"""OpenAI's Images API: pictures, edits, and the list of models."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.errors import Reply
from eri_runtime.serve.http.kept_pictures import KeptPictures
from eri_runtime.serve.http.openai_fields import Fields, GenerationFields
from eri_runtime.serve.http.openai_form import read_edit
from eri_runtime.serve.http.openai_replies import Replies
from eri_runtime.serve.http.openai_requests import edit, find_model, generation
from eri_runtime.serve.http.openai_schema import EDIT_BODY, OPENAI_ERRORS, PICTURES
from eri_runtime.serve.http.options import ServerOptions
from eri_runtime.serve.http.running import finish, timeout_of
from eri_runtime.serve.http.sse import event_stream
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.status import Model

router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS)
PRIVATE = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}


@router.post("/images/generations", responses=PICTURES)
async def generate(request: Request, fields: GenerationFields) -> Response:
    """Generates pictures from a prompt."""
    task = generation(_engine(request), fields, timeout_of(request))
    return await _answer(request, "image_generation", fields, task)


@router.post("/images/edits", responses=PICTURES, openapi_extra={"requestBody": EDIT_BODY})
async def edit_picture(request: Request) -> Response:
    """Edits a picture, all of it or where a mask is transparent."""
    options: ServerOptions = request.app.state.options
    timeout = timeout_of(request)
    form = await read_edit(request, options.upload_pixels)
    engine = _engine(request)
    task = await asyncio.to_thread(edit, engine, form.fields, timeout, form.image, form.mask)
    return await _answer(request, "image_edit", form.fields, task)


async def _answer(request: Request, kind: str, fields: Fields, task: PictureRequest) -> Response:
    """Submits a request, and answers with its pictures or a stream of events."""
    state = request.app.state
    kept: KeptPictures = state.kept
    if fields.response_format == "url" and not fields.stream:
        kept.check()
    submission = await _engine(request).submit_async(task)
    replies = Replies(
        kind=kind,
        fields=fields,
        model=_engine(request).models[task.model],
        tokens=state.tokens,
        kept=kept,
        address=str(request.base_url),
    )
    if fields.stream:
        return await event_stream(replies.stream(request, submission))
    return Reply(await replies.whole(submission, await finish(request, submission)))


@router.get("/images/files/{name}", response_class=Response)
async def kept_picture(request: Request, name: str) -> Response:
    """Returns a picture whose address was given out. It needs no key: nobody can guess its name."""
    kept: KeptPictures = request.app.state.kept
    found = kept.get(name.partition(".")[0])
    if found is None:
        raise HTTPException(404, "picture: unknown, or its hour is over")
    return Response(found.content, media_type=found.media_type, headers=PRIVATE)


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """Lists the bundles."""
    listed = [_model(each) for each in _engine(request).models.values()]
    return {"object": "list", "data": listed}


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describes one bundle."""
    return _model(find_model(_engine(request), name))


def _model(model: Model) -> dict[str, Any]:
    """Returns OpenAI's object of a model."""
    return {"id": model.name, "created": model.created, "object": "model", "owned_by": "eri"}


def _engine(request: Request) -> Engine:
    """Returns the app's engine."""
    engine: Engine = request.app.state.engine
    return engine
