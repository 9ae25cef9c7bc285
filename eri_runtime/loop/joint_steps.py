"""One engine call for a step of several trajectories, each with its own table and guidance.

A sampler is numbers here, and the denoiser takes a timestep for every row of its batch. So the rows
of images at different steps, of different samplers, step counts, guidance and prompts can be
evaluated together; what each makes of its predictions is its own, and so is its failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np

from eri_runtime.loop.guidance_plan import DenoiserPass, GuidancePlan, Inputs
from eri_runtime.loop.numpy_loop import Array, Step, Trajectory

LARGE = 1 << 20  # bytes above which arrays are told apart by identity, not by content

Signature = tuple[object, ...]
RunRows = Callable[[Inputs, Inputs], Array]  # inputs with rows, shared inputs -> predictions


class GuidedTrajectory:
    """A trajectory with its conditions: asks for rows of the denoiser's batch.

    Attributes:
        trajectory: The trajectory.
        shared: The denoiser's inputs that all rows share.
    """

    def __init__(self, trajectory: Trajectory, plan: GuidancePlan, shared: Inputs) -> None:
        self.trajectory, self.shared, self._plan = trajectory, shared, plan
        self._inputs: dict[DenoiserPass, Inputs] = {}  # with conditions, which never change

    @cached_property
    def signature(self) -> Signature:
        """What two of them must have in common to share an engine call.

        That is the shapes of the inputs with rows, and the shared inputs; nothing without steps.
        """
        return () if self.done else _signature(self.ask(), self.shared)

    @property
    def done(self) -> bool:
        """Whether every step has been made."""
        return self.trajectory.done

    @property
    def rows(self) -> int:
        """Rows of the denoiser's batch that the next step takes: conditions times images."""
        return len(self._pass.conditions) * len(self.trajectory.step.x)

    @property
    def conditions(self) -> DenoiserPass:
        """Which conditions the next step takes, and how they are mixed."""
        return self._pass

    def ask(self) -> Inputs:
        """Returns the denoiser's inputs of the next step, (K·B, …).

        The same arrays at each step of the same conditions, so that an engine binds them once: the
        next call overwrites them.
        """
        x, at = self.trajectory.ask()
        current = self._pass
        if current not in self._inputs:
            rows = len(current.conditions) * len(x)
            sample = np.empty((rows, *x.shape[1:]), x.dtype)
            own = {"sample": sample, "timestep": np.empty(rows, np.float32)}
            self._inputs[current] = {**own, **self._plan.inputs(current)}
        inputs = self._inputs[current]
        np.concatenate([x] * len(current.conditions), out=inputs["sample"])
        inputs["timestep"].fill(at.t)
        return inputs

    def tell(self, predictions: Array) -> Step:
        """Makes the step from the denoiser's predictions (K·B, …); returns it.

        Raises `NonFiniteError`, naming the step, if the latents contain NaN or Inf.
        """
        return self.trajectory.tell(self._plan.guided(self._pass, predictions))

    @property
    def _pass(self) -> DenoiserPass:
        """The pass of the next evaluation."""
        return self._plan.pass_at(self.trajectory.step.index + 1, self.trajectory.point)


def step_together(run: RunRows, trajectories: Sequence[GuidedTrajectory]) -> list[Step | Exception]:
    """Makes a step of every trajectory with one call of `run`.

    Args:
        run: Runs the denoiser on inputs with rows and shared inputs; returns its predictions.
        trajectories: Trajectories of one signature, none of them done.

    Returns:
        For each trajectory its step, or what went wrong in that step alone, such as a
        `NonFiniteError`. What `run` raises passes through, and no trajectory has moved then.
    """
    asked = [each.ask() for each in trajectories]
    joined = {name: np.concatenate([inputs[name] for inputs in asked]) for name in asked[0]}
    predictions = run(joined, trajectories[0].shared)
    ends = np.cumsum([len(inputs["sample"]) for inputs in asked])
    parts = np.split(predictions, ends[:-1])
    return [_told(each, part) for each, part in zip(trajectories, parts, strict=True)]


def _told(trajectory: GuidedTrajectory, predictions: Array) -> Step | Exception:
    """Returns the step of a trajectory, or its error."""
    try:
        return trajectory.tell(predictions)
    except Exception as error:
        return error


def _signature(inputs: Inputs, shared: Inputs) -> Signature:
    """Returns the shapes of the inputs with rows, and what the shared ones contain."""
    rows = tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))
    return rows, tuple(
        (name, array.shape, _content(array)) for name, array in sorted(shared.items())
    )


def _content(array: Array) -> object:
    """Returns what identifies an array: its bytes, or itself if it is large."""
    if array.nbytes > LARGE:
        return id(array)
    return blake2b(array.tobytes(), digest_size=16).digest()
