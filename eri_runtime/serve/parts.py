"""Requests for more pictures than one call of the bundle can make, served in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.errors import ServingError
from eri_runtime.latents import images_at_once
from eri_runtime.sampling import image_seeds
from eri_runtime.serve.messages import Event, PictureRequest, Pictures, Progress
from eri_runtime.serve.submission import HeldSubmission, Submission

COUNT = "num_images_per_prompt"


def parts_of(bundle: Bundle, request: PictureRequest) -> list[PictureRequest]:
    """Returns requests that make the same pictures, each of which the bundle can make at once.

    Only the pictures of one prompt are divided; a longer list is left as it is, and refused later.
    """
    words, most = request.words, images_at_once(bundle).max
    count = words.get(COUNT)
    if not isinstance(count, int) or count <= most or _has_list(request):
        return [request]
    seeds = image_seeds(words.get("seed"), count)
    return [
        replace(request, words={**words, COUNT: len(own), "seed": list(own)})
        for own in (seeds[start : start + most] for start in range(0, count, most))
    ]


def _has_list(request: PictureRequest) -> bool:
    """Returns whether something is given for each prompt or each picture."""
    single = {name: value for name, value in request.words.items() if name != "seed"}
    values = (request.prompt, request.negative_prompt, *single.values())
    arrays = any(name in single for name in ("latents", "prompt_embeds"))
    return arrays or any(isinstance(each, list | tuple) for each in values)


class JointSubmission(Submission):
    """Several submissions that look like one: their steps together, their pictures in order."""

    def __init__(self, request: PictureRequest, parts: Sequence[HeldSubmission]) -> None:
        self.id, self.request, self.parts = parts[0].id, request, tuple(parts)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yields a step when every part has made it, previews of all parts, and the pictures."""
        queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        tasks = [asyncio.create_task(_follow(i, each, queue)) for i, each in enumerate(self.parts)]
        try:
            async with aclosing(self._joined(queue)) as joined:
                async for event in joined:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            self.cancel()

    async def _joined(
        self, queue: asyncio.Queue[tuple[int, Event | Exception]]
    ) -> AsyncGenerator[Event]:
        """Yields the events of all parts as those of one request."""
        steps: dict[int, Progress] = {}
        shown: dict[int, list[Progress]] = {i: [] for i in range(len(self.parts))}
        made: dict[int, Pictures] = {}
        told = 0
        while len(made) < len(self.parts):
            number, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Pictures):
                made[number] = event
                continue
            steps[number] = event
            shown[number] += [event] if event.images else []
            if all(shown.values()):
                yield _shown_together([each.pop(0) for each in shown.values()])
            least = min((each.step for each in steps.values()), default=0)
            if len(steps) == len(self.parts) and least > told:
                told = least
                yield replace(event, step=least, images=())
        yield _joined_pictures([made[i] for i in range(len(self.parts))])

    @property
    def ended(self) -> bool:
        """Whether all parts have ended."""
        return all(each.ended for each in self.parts)

    def cancel(self) -> None:
        """Stops all parts."""
        for each in self.parts:
            each.cancel()


async def _follow(
    number: int, part: Submission, queue: asyncio.Queue[tuple[int, Event | Exception]]
) -> None:
    """Puts the events of a part into a queue, and its error; one without pictures is an error."""
    last: Event | None = None
    try:
        async for event in part:
            last = event
            queue.put_nowait((number, event))
        if not isinstance(last, Pictures):
            got = "no pictures"
            raise ServingError(f"request {part.id}", got=got, expected="some; read them once")
    except Exception as error:
        queue.put_nowait((number, error))


def _shown_together(parts: Sequence[Progress]) -> Progress:
    """Returns previews of several parts as those of one step."""
    first = min(parts, key=lambda each: each.step)
    return replace(first, images=tuple(chain.from_iterable(each.images for each in parts)))


def _joined_pictures(parts: Sequence[Pictures]) -> Pictures:
    """Returns the pictures of several parts in order."""

    def all_of(name: str) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(getattr(each, name) for each in parts))

    return Pictures(images=all_of("images"), seeds=all_of("seeds"), parameters=all_of("parameters"))
