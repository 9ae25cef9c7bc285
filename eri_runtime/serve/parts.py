"""Requests for more pictures than one call of the bundle can make, served in parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.latents import images_at_once
from eri_runtime.sampling import image_seeds
from eri_runtime.serve.messages import Event, PictureRequest, Pictures, Progress
from eri_runtime.serve.submission import HeldSubmission, Submission, whole

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
        # small, so that what nobody reads stays with the parts, which limit it
        queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(1)
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
        steps = dict.fromkeys(range(len(self.parts)), 0)
        shown: dict[int, dict[int, Progress]] = {}  # previews by step and part
        made: dict[int, Pictures] = {}
        told = 0
        while len(made) < len(self.parts):
            number, event = await queue.get()
            if isinstance(event, Exception):
                try:
                    raise event
                finally:
                    del event  # the error would refer to this frame, and the frame to it
            if isinstance(event, Pictures):
                made[number] = event
                continue
            steps[number] = max(steps[number], event.step)  # one with previews may come late
            if event.images:
                shown.setdefault(event.step, {})[number] = event
            if len(shown.get(event.step, ())) == len(self.parts):
                yield _shown_together(shown.pop(event.step))
            while told < min(steps.values()):
                told += 1
                yield replace(event, step=told, images=())
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
    try:
        async for event in whole(part):
            await queue.put((number, event))
    except Exception as error:
        await queue.put((number, error))


def _shown_together(parts: Mapping[int, Progress]) -> Progress:
    """Returns the previews that the parts, by number, made of one step."""
    images = tuple(chain.from_iterable(parts[i].images for i in range(len(parts))))
    return replace(parts[0], images=images)


def _joined_pictures(parts: Sequence[Pictures]) -> Pictures:
    """Returns the pictures of several parts in order."""

    def all_of(name: str) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(getattr(each, name) for each in parts))

    return Pictures(images=all_of("images"), seeds=all_of("seeds"), parameters=all_of("parameters"))
