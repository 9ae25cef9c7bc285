"""What a client asks for and what it gets back, whatever lies between: a thread or a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class PictureRequest:
    """One request for pictures. It can be pickled, so it can go to another process.

    Attributes:
        model: Name of the bundle. Default: the engine's first.
        prompt: As in a call of `Pipeline`.
        negative_prompt: As in a call of `Pipeline`.
        words: Keyword arguments of `Pipeline.request`, such as `height` or `seed`. Their
            `output_type` is always "pil".
        loras: LoRAs of the engine by name, with their scales. Passed as inputs if the bundle has
            them, else merged into the weights while the request runs.
        previews: How many previews to make, evenly spaced over the steps.
        timeout: Seconds from submission after which the request is given up. Default, and at most:
            the engine's.
    """

    model: str = ""
    prompt: Any = None
    negative_prompt: Any = None
    words: Mapping[str, Any] = field(default_factory=dict)
    loras: Mapping[str, float] = field(default_factory=dict)
    previews: int = 0
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step that a request has made.

    One with previews comes once they are made, maybe after later steps.

    Attributes:
        step: Number of steps made, 1 to `total`.
        total: Number of steps in all.
        images: A preview of every picture, if one was due; else empty.
    """

    step: int
    total: int
    images: Sequence[Image] = ()


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a request: the last event of every one that succeeds.

    Attributes:
        images: The pictures.
        seeds: The seed of each.
        parameters: AUTOMATIC1111's `parameters` text of each.
    """

    images: Sequence[Image]
    seeds: Sequence[int]
    parameters: Sequence[str]


Event = Progress | Pictures
