"""Replies of OpenAI's Images API: the object of a plain reply, and the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request

from eri_runtime.serve.engine import Model, Submission
from eri_runtime.serve.http.kept_pictures import KeptPictures
from eri_runtime.serve.http.openai_fields import Fields
from eri_runtime.serve.http.openai_usage import TokenCounter
from eri_runtime.serve.http.pictures import MEDIA_TYPES, encode_all, to_base64
from eri_runtime.serve.http.running import events
from eri_runtime.serve.http.sse import Frames, frame
from eri_runtime.serve.messages import Pictures, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITIES = ("low", "medium", "high", "xhigh", "max")
BACKGROUND = "opaque"  # no model here makes transparent pictures


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Makes the replies to one request.

    Attributes:
        kind: `image_generation` or `image_edit`, the first part of events' names.
        fields: The request's fields.
        model: The model that it goes to.
        tokens: Counts tokens.
        kept: Keeps pictures for those who ask for a URL.
        address: The server's own address, with a slash at its end.
    """

    kind: str
    fields: Fields
    model: Model
    tokens: TokenCounter
    kept: KeptPictures
    address: str

    async def whole(self, submission: Submission, pictures: Pictures) -> dict[str, Any]:
        """Returns the object of a plain reply."""
        images = pictures.images
        files = await self._files(images, pictures.parameters)
        quality = self.fields.quality if self.fields.quality in QUALITIES else None
        members = {
            "created": int(time.time()),
            "data": [self._picture(content) for content in files],
            "background": BACKGROUND,
            "output_format": self.fields.form,
            "quality": quality,
            "size": _size(images[0]),
            "usage": await self._usage(submission, images[0], len(images)),
        }
        return {name: value for name, value in members.items() if value is not None}

    async def stream(self, request: Request, submission: Submission) -> Frames:
        """Yields the frames of a stream: previews, then the pictures.

        Those of several pictures tell their number, from 0, as `image_index`.
        """
        made = 0
        async with aclosing(events(request, submission)) as coming:
            async for event in coming:
                if isinstance(event, Pictures):
                    async for each in self._completed(submission, event):
                        yield each
                elif event.images:
                    for each in await self._partial(event, made):
                        yield each
                    made += 1

    async def _partial(self, progress: Progress, number: int) -> list[bytes]:
        """Returns the frames of one preview of each picture."""
        files = await self._files(progress.images)
        pairs = enumerate(zip(progress.images, files, strict=True))
        kind, index = "partial_image", {"partial_image_index": number}
        return [self._event(kind, i, image, content, index) for i, (image, content) in pairs]

    async def _completed(self, submission: Submission, pictures: Pictures) -> Frames:
        """Yields the last frame of each picture."""
        files = await self._files(pictures.images, pictures.parameters)
        for i, (image, content) in enumerate(zip(pictures.images, files, strict=True)):
            usage = await self._usage(submission, image, 1)
            more = {} if usage is None else {"usage": usage}
            yield self._event("completed", i, image, content, more)

    def _event(
        self, name: str, index: int, image: Image, content: bytes, more: dict[str, Any]
    ) -> bytes:
        """Returns the frame of one picture."""
        kind = f"{self.kind}.{name}"
        members = {
            "type": kind,
            "b64_json": to_base64(content),
            "created_at": int(time.time()),
            "size": _size(image),
            "quality": self.fields.quality if self.fields.quality in QUALITIES else "auto",
            "background": BACKGROUND,
            "output_format": self.fields.form,
            "image_index": index,
        }
        return frame(kind, members | more)

    async def _files(self, images: Sequence[Image], texts: Sequence[str] = ()) -> list[bytes]:
        """Returns pictures as files of the format that the client asked for."""
        return await encode_all(images, texts, self.fields.form, self.fields.compression)

    def _picture(self, content: bytes) -> dict[str, str]:
        """Returns one item of `data`."""
        if self.fields.response_format != "url":
            return {"b64_json": to_base64(content)}
        name = self.kept.add(content, MEDIA_TYPES[self.fields.form])
        return {"url": f"{self.address}v1/images/files/{name}.{self.fields.form}"}

    async def _usage(self, submission: Submission, image: Image, count: int) -> Any:
        """Returns the usage object, or None."""
        return await self.tokens.usage(self.model, submission.request, image.size, count)


def _size(image: Image) -> str:
    """Returns the size of a picture as `WIDTHxHEIGHT`."""
    return f"{image.width}x{image.height}"
