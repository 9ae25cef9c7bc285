"""The denoising loops: run a sampler table step by step.

`numpy_loop` is the reference and defines `Step`; `step_graph_loop` runs the same table inside the
engine; `choice` picks one of the two. `step_cache` skips most of the denoiser in some steps.
`joint_steps` makes a step of several trajectories with one engine call. `guidance_plan` says which
conditions the denoiser gets at each step and how their predictions are mixed (CFG, rescale). Uses
`sampling`, `executors` and `latents`. Start with `numpy_loop`.
"""

from eri_runtime.loop.choice import Loop, LoopChoice
from eri_runtime.loop.guidance_plan import GuidancePlan, Inputs
from eri_runtime.loop.joint_steps import GuidedTrajectory, step_together
from eri_runtime.loop.numpy_loop import (
    Array,
    HostLatents,
    Step,
    Trajectory,
    check_start,
    denoise,
    identity,
)
from eri_runtime.loop.step_cache import FirstBlockCache
from eri_runtime.loop.step_graph_loop import denoise_on_step_graph, denoiser_passes

__all__ = [
    "Array",
    "FirstBlockCache",
    "GuidancePlan",
    "GuidedTrajectory",
    "HostLatents",
    "Inputs",
    "Loop",
    "LoopChoice",
    "Step",
    "Trajectory",
    "check_start",
    "denoise",
    "denoise_on_step_graph",
    "denoiser_passes",
    "identity",
    "step_together",
]
