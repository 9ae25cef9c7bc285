"""Requests served in parts, without an engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from PIL import Image

from eri_runtime.errors import ServingError
from eri_runtime.serve.messages import PictureRequest, Pictures
from eri_runtime.serve.parts import JointSubmission
from eri_runtime.serve.submission import HeldSubmission


def ended_part(seed: int) -> HeldSubmission:
    """A part whose picture is made."""
    checked = SimpleNamespace(steps=1, batch=1)
    part = HeldSubmission(PictureRequest(), checked, lambda _: None)
    image = Image.new("RGB", (8, 8))
    part.end("finished", Pictures(images=(image,), seeds=(seed,), parameters=("",)))
    return part


def test_pictures_of_parts_are_read_once_and_a_second_reader_does_not_wait():
    async def read() -> None:
        joint = JointSubmission(PictureRequest(), [ended_part(1), ended_part(2)])
        assert (await joint.pictures()).seeds == (1, 2)
        with pytest.raises(ServingError, match="read them once"):
            await asyncio.wait_for(joint.pictures(), 20)

    asyncio.run(read())
