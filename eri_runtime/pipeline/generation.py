"""A request in progress, whose steps are made together with those of others."""

from __future__ import annotations

from dataclasses import dataclass

from eri_runtime.loop import GuidedTrajectory, Step
from eri_runtime.memory import RequestSize
from eri_runtime.request import Request


@dataclass(frozen=True, eq=False)
class Generation:
    """A request in progress; `Pipeline.begin` makes one and `Pipeline.step` its next step.

    Attributes:
        request: The request.
        parameters: AUTOMATIC1111's `parameters` text of each picture, with the LoRAs that were
            merged when it began.
        trajectory: Its latents, table and conditions.
    """

    request: Request
    parameters: tuple[str, ...]
    trajectory: GuidedTrajectory

    @property
    def done(self) -> bool:
        """Whether every step has been made."""
        return self.trajectory.done

    @property
    def last(self) -> Step:
        """The state after the last step; before the first its index is −1."""
        return self.trajectory.trajectory.step

    @property
    def group(self) -> object:
        """What two generations must have in common for `Pipeline.step` to take them together."""
        return self.request.height, self.request.width, self.trajectory.signature

    @property
    def rows(self) -> int:
        """Rows of the denoiser's batch that the next step takes."""
        return self.trajectory.rows


def joint_size(generations: list[Generation]) -> RequestSize:
    """Returns the size of a step of several generations of one group."""
    request = generations[0].request
    return RequestSize(
        images=sum(each.request.batch for each in generations),
        rows=sum(each.rows for each in generations),
        height=request.height,
        width=request.width,
    )
