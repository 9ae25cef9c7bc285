"""Where diffusers differs by definition or is wrong: what, why, and a run that shows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from eri_runtime.bundle.spec import ScheduleSpec
from tests.support.references.case import Case
from tests.support.references.cases import config, ddim_case, multistep, over_sigma, vp
from tests.support.references.runs import measure
from tests.support.references.schedulers import Diffusers


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`case` without what makes the other cases agree."""

    what: str
    why: str
    case: Case
    steps: int

    def shown(self) -> float:
        """The float32 error; NaN where diffusers gives that."""
        return measure(self.case, self.steps).float32


def changed(case: Case, **fields) -> Case:
    """The case with another reference, or compared otherwise."""
    names = {each.name for each in dataclasses.fields(Case)}
    mine = {name: value for name, value in fields.items() if name in names}
    theirs = {name: value for name, value in fields.items() if name not in names}
    return dataclasses.replace(
        case, reference=dataclasses.replace(case.reference, **theirs), **mine
    )


FLOW = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace")
DIFFERENCES = [
    Difference(
        what="alpha-bar is multiplied up in float32",
        why="a thousand rounded products; the cosine schedule's first 1 − alpha-bar is 4e-5, and "
        "keeps three digits. Ours, and the reference in every other run, is float64.",
        case=changed(
            ddim_case(
                vp("x0", beta_curve="squaredcos_cap_v2", spacing="leading", final="sigma_min")
            ),
            exact=False,
        ),
        steps=20,
    ),
    Difference(
        what="DDIM steps to t − T/N, on any spacing but `leading`",
        why="which is none of its N points where N does not divide T, and not the end at the last "
        "step. Ours goes from each of the N points to the next.",
        case=ddim_case(vp("eps")),
        steps=7,
    ),
    Difference(
        what="DPM-Solver++ and UniPC take N of N + 1 points on `leading` and `linspace`",
        why="so that one name of a spacing means other points than for the other samplers. Ours "
        "means the same for all; at the levels of diffusers both agree.",
        case=multistep("dpmpp_2m", vp("eps", spacing="linspace")),
        steps=7,
    ),
    Difference(
        what="DPM-Solver++ and UniPC space karras, exponential and beta levels over all T",
        why="where Euler, Heun and DPM2 space them over the N points. Ours always does the latter.",
        case=changed(multistep("dpmpp_2m", vp("eps"), "karras", timeless=True), sigmas="karras"),
        steps=7,
    ),
    Difference(
        what="DPM-Solver++ rounds the clock of spaced levels to whole training steps",
        why="the network is told another t than its noise has. Ours tells it the t between.",
        case=multistep("dpmpp_2m", vp("eps"), "karras"),
        steps=20,
    ),
    Difference(
        what="DPM-Solver++ begins with unit noise on every spacing",
        why="Euler and Heun begin at sigma_0 where the first alpha is not 0, as k-diffusion's "
        "samplers all do, ours included.",
        case=changed(multistep("dpmpp_2m", vp("eps")), own_start=True),
        steps=7,
    ),
    Difference(
        what="DPM-Solver++ begins a flow at 0.999 and not at 1",
        why="log(alpha/sigma) of 1 is not finite. Ours takes that one step in its limit, which is "
        "first order, and begins where the model was taught to.",
        case=multistep("dpmpp_2m", FLOW, timeless=True),
        steps=7,
    ),
    Difference(
        what="DPM-Solver++ and UniPC cut the clock of a flow to whole numbers",
        why="a flow's t is sigma times 1000, and not whole. Ours is not cut.",
        case=multistep("unipc", FLOW, "reference"),
        steps=20,
    ),
    Difference(
        what="the 1/2 of DPM-Solver++'s third-order SDE has another sign",
        why="in the factor of the second difference, −phi_2/H − 1/2, which does not vanish with H; "
        "k-diffusion's DPM++ 3M SDE has −phi_2/H + 1/2, which does.",
        case=Case(
            sampler="dpmpp_3m_sde",
            spec=vp("eps"),
            reference=Diffusers(
                name="DPMSolverMultistepScheduler",
                config=config(vp(), algorithm_type="sde-dpmsolver++", solver_order=3),
            ),
        ),
        steps=20,
    ),
    Difference(
        what="DPM2 a gives NaN on the cosine schedule",
        why="its sigma_down comes from a difference of squares in float32, below 0 from "
        "a sigma of 2e4.",
        case=over_sigma("dpm2_a", vp("v", beta_curve="squaredcos_cap_v2")),
        steps=7,
    ),
]
