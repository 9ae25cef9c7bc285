"""An open-loop load: requests arrive at random moments, whatever has become of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROMPTS = ("a red heart", "a pizza", "a cat face", "a rocket", "a sunflower", "")
SHORT = 8  # most steps of a request that counts as short


@dataclass(frozen=True)
class Arrival:
    """A request, and when it arrives in seconds."""

    at: float
    prompt: str
    steps: int
    size: int
    guidance: float
    seed: int

    @property
    def short(self) -> bool:
        """Whether it has few steps, at the smallest size of the load."""
        return self.steps <= SHORT

    @property
    def words(self) -> dict[str, object]:
        """The arguments of a call but prompt and seed."""
        return {
            "num_inference_steps": self.steps,
            "height": self.size,
            "width": self.size,
            "guidance_scale": self.guidance,
        }


def draw(
    count: int, rate: float, sizes: Sequence[int], steps: Sequence[int], seed: int = 0
) -> list[Arrival]:
    """Draws requests with exponential gaps (a Poisson process).

    Args:
        count: Number of requests.
        rate: Requests per second; infinite for a burst.
        sizes: Sides in pixels to draw from.
        steps: Numbers of steps to draw from.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    gaps = np.zeros(count) if np.isinf(rate) else rng.exponential(1 / rate, count)
    return [
        Arrival(
            at=float(at),
            prompt=str(rng.choice(PROMPTS)),
            steps=int(rng.choice(steps)),
            size=int(rng.choice(sizes)),
            guidance=float(rng.choice([1.0, 4.0, 7.0])),
            seed=number,
        )
        for number, at in enumerate(np.cumsum(gaps))
    ]
