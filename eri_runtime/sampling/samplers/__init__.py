"""The samplers, in the style of k-diffusion: `algorithm(denoise, noise, x, schedule) -> x`.

`denoise(x, point)` returns the denoised x_0 and `noise()` a unit normal. Here x is an array, or a
`Linear` when `tabulation.tabulate` runs the algorithm on symbols. `euler`, `second_order`,
`multistep`, `dpm_solver`, `deis`, `unipc`, `pndm`, `sa_solver` and `distilled` hold the algorithms,
`steps` what they share; `SAMPLERS` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from eri_runtime.bundle import LevelSpec, ScheduleKind, ScheduleSpec
from eri_runtime.checks import mapping
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling.levels import scheduler_schedule
from eri_runtime.sampling.samplers import distilled, multistep, second_order
from eri_runtime.sampling.samplers.deis import deis
from eri_runtime.sampling.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from eri_runtime.sampling.samplers.euler import ddim, ddpm
from eri_runtime.sampling.samplers.pndm import pndm
from eri_runtime.sampling.samplers.sa_solver import sa_solver
from eri_runtime.sampling.samplers.unipc import unipc
from eri_runtime.sampling.schedule import Schedule, make_schedule
from eri_runtime.sampling.sigmas import SigmaName

__all__ = ["SAMPLERS", "Sampler", "ddim"]

Memory = Literal["x0", "slope", "eps", "v"]
KEEP_NOISE = "keep_noise"  # an option that `make_table` reads: see `SamplerTable.E`


class Option(NamedTuple):
    """An option of a sampler, such as `eta`.

    Attributes:
        default: Its default.
        low: Its least value.
        high: Its largest value.
    """

    default: float
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A named sampler: an algorithm with its options and conventions.

    Attributes:
        name: Its name in eri, a key of `SAMPLERS`.
        label: Its name in AUTOMATIC1111.
        algorithm: `algorithm(denoise, noise, x, schedule, **options) -> x`, as for `tabulate`.
        kinds: The kinds of schedules on which it is defined: `vp`, `flow`.
        options: Its options by name, each with a default and a range.
        whole_t: Whether the timesteps of `vp` are rounded to integers.
        starts_at_sigma: Whether the initial latents are sigma_0·noise, as in k-diffusion, unless
            the checkpoint has the `leading` spacing. Otherwise they are unit noise, as in DDIM.
        original_steps: Number of timesteps on which a distilled model was trained. None: the
            sampler is not for distilled models.
        memory: What the table's history holds: `x0`, `slope`, the ODE's slope
            (x − scale·x_0)/sigma, `eps`, the noise (x − alpha·x_0)/sigma, or `v`, the velocity
            (alpha·x − x_0)/sigma.

    Example:
        >>> eri.SAMPLERS["ddim"].label, eri.SAMPLERS["ddim"].options["eta"]
        ('DDIM', Option(default=0.0, low=0.0, high=1.0))
    """

    name: str
    label: str
    algorithm: Callable[..., Any]
    kinds: tuple[ScheduleKind, ...]
    options: Mapping[str, Option] = field(default_factory=dict)
    whole_t: bool = False
    starts_at_sigma: bool = False
    original_steps: int | None = None
    memory: Memory = "x0"

    def schedule(
        self,
        spec: ScheduleSpec,
        steps: int,
        tokens: int,
        sigmas: SigmaName | Sequence[float] = "default",
        levels: LevelSpec | None = None,
    ) -> Schedule:
        """Calls `make_schedule` with this sampler's conventions.

        Args:
            spec: The training schedule, for example `pipe.bundle.schedule`.
            steps: Number of denoising steps.
            tokens: Number of the denoiser's image tokens, for a resolution-dependent shift (Flux).
            sigmas: Spacing of the noise levels, or the levels themselves; see `make_schedule`.
            levels: The levels of the checkpoint's own scheduler, instead of `sigmas`.

        Returns:
            The points of the denoising loop.

        Raises:
            UsageError: If `steps` or `sigmas` is out of range.
            UnknownNameError: If `sigmas` is an unknown name.
        """
        if levels is not None:
            return scheduler_schedule(spec, levels, steps, tokens)
        return make_schedule(
            spec,
            steps,
            tokens,
            whole_t=self.whole_t,
            original_steps=self.original_steps,
            sigmas=sigmas,
        )

    def checked(self, options: Mapping[str, float]) -> dict[str, float]:
        """Checks options and adds the defaults of the others.

        Args:
            options: Values by name.

        Returns:
            The values of all options of this sampler.

        Raises:
            UsageError: If the sampler does not have an option, or its value is out of range.

        Example:
            >>> eri.SAMPLERS["euler_a"].checked({"eta": 0.5})
            {'eta': 0.5, 's_noise': 1.0}
        """
        for name, value in mapping("options", options, "values by name").items():
            if name not in self.options:
                expected = ", ".join(self.options) or "no options"
                raise UsageError(name, got=f"{short(value)} with {self.name}", expected=expected)
            _, low, high = self.options[name]
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UsageError(name, got=short(value), expected=f"{low:g} to {high:g}")
        return {name: options.get(name, option.default) for name, option in self.options.items()}


NO_ETA, ETA, S_NOISE = Option(0.0, 0.0, 1.0), Option(1.0, 0.0, 1.0), Option(1.0, 0.0, 2.0)
CHURN = {
    "s_churn": Option(0.0),
    "s_tmin": Option(0.0),
    "s_tmax": Option(float("inf")),
    "s_noise": S_NOISE,
}
SWITCH, ON = Option(0, 0, 1), Option(1, 0, 1)
VP: tuple[ScheduleKind, ...] = ("vp",)
ANY: tuple[ScheduleKind, ...] = ("vp", "flow")
DPM = {"order": Option(2, 1, 3), "heun": SWITCH, "lower_order_final": ON}
UNIPC = {
    "order": Option(2, 1, 3),
    "bh": Option(2, 1, 2),
    "correct_from": Option(0),
    "lower_order_final": ON,
}
SA = {
    "order": Option(2, 1, 4),
    "corrector_order": Option(2, 1, 4),
    "tau": Option(1, 0, 2),
    "tau_from": Option(200),
    "tau_to": Option(800),
    "lower_order_final": ON,
}
NOISY = {"eta": ETA, "s_noise": S_NOISE}
K_DIFFUSION: Any = {"starts_at_sigma": True}

# In (alpha, sigma) Euler's step on the probability-flow ODE is DDIM's with eta 0, for `vp` as for
# `flow` (Karras et al. 2022, arXiv 2206.00364, appendix C); with eta 1 it is DDPM's and Euler a's.
# Several names share one algorithm and differ in their conventions.
SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            name="ddim",
            label="DDIM",
            algorithm=ddim,
            kinds=VP,
            whole_t=True,
            options={"eta": NO_ETA, KEEP_NOISE: SWITCH},
        ),
        Sampler(name="euler", label="Euler", algorithm=ddim, kinds=VP, **K_DIFFUSION),
        Sampler(name="flow_euler", label="Euler", algorithm=ddim, kinds=("flow",)),
        Sampler(
            name="euler_a",
            label="Euler a",
            algorithm=ddim,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="ddpm",
            label="DDPM",
            algorithm=ddpm,
            kinds=VP,
            whole_t=True,
            options={"eta": Option(1.0, 1.0, 1.0), "large": SWITCH},
        ),
        Sampler(
            name="heun",
            label="Heun",
            algorithm=second_order.heun,
            kinds=VP,
            options=CHURN,
            **K_DIFFUSION,
        ),
        # no churn: on a flow it would add noise without scaling the image down
        Sampler(name="flow_heun", label="Heun", algorithm=second_order.heun, kinds=("flow",)),
        Sampler(
            name="dpmpp_2m",
            label="DPM++ 2M",
            algorithm=multistep.dpmpp_2m,
            kinds=ANY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_2m_sde",
            label="DPM++ 2M SDE",
            algorithm=multistep.dpmpp_2m,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_sde",
            label="DPM++ SDE",
            algorithm=second_order.dpmpp_sde,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_3m_sde",
            label="DPM++ 3M SDE",
            algorithm=multistep.dpmpp_3m_sde,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="lms",
            label="LMS",
            algorithm=multistep.lms,
            kinds=ANY,
            options={"order": Option(4, 1, 4)},
            memory="slope",
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpm2",
            label="DPM2",
            algorithm=second_order.dpm2,
            kinds=ANY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpm2_a",
            label="DPM2 a",
            algorithm=second_order.dpm2,
            kinds=VP,
            options={"eta": ETA},
            **K_DIFFUSION,
        ),
        Sampler(
            name="dpmpp_2s_a",
            label="DPM++ 2S a",
            algorithm=second_order.dpmpp_2s,
            kinds=ANY,
            options=NOISY,
            **K_DIFFUSION,
        ),
        Sampler(
            name="unipc",
            label="UniPC",
            algorithm=unipc,
            kinds=ANY,
            options=UNIPC,
            whole_t=True,
        ),
        Sampler(
            name="unipc_eps",
            label="UniPC in noise",
            algorithm=partial(unipc, noise_prediction=1),
            kinds=VP,
            options=UNIPC,
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="deis",
            label="DEIS",
            algorithm=deis,
            kinds=ANY,
            options={"order": Option(2, 1, 3), "lower_order_final": ON},
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="dpmpp_multistep",
            label="DPM-Solver++ multistep",
            algorithm=dpm_multistep,
            kinds=ANY,
            options={**DPM, "sde": SWITCH, "euler_at_final": SWITCH},
            whole_t=True,
        ),
        Sampler(
            name="dpm_multistep",
            label="DPM-Solver multistep",
            algorithm=partial(dpm_multistep, noise_prediction=1),
            kinds=VP,
            options={**DPM, "sde": SWITCH, "euler_at_final": SWITCH},
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="dpmpp_singlestep",
            label="DPM-Solver++ single-step",
            algorithm=dpm_singlestep,
            kinds=ANY,
            options={**DPM, "sde": SWITCH},
            whole_t=True,
        ),
        Sampler(
            name="dpm_singlestep",
            label="DPM-Solver single-step",
            algorithm=partial(dpm_singlestep, noise_prediction=1),
            kinds=VP,
            options=DPM,
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="pndm",
            label="PLMS",
            algorithm=pndm,
            kinds=VP,
            options={"runge_kutta": SWITCH},
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="pndm_v",
            label="PLMS in v",
            algorithm=partial(pndm, v=1),
            kinds=VP,
            options={"runge_kutta": SWITCH},
            whole_t=True,
            memory="v",
        ),
        Sampler(
            name="sa_solver",
            label="SA-Solver",
            algorithm=sa_solver,
            kinds=ANY,
            options=SA,
            whole_t=True,
        ),
        Sampler(
            name="sa_solver_eps",
            label="SA-Solver in noise",
            algorithm=partial(sa_solver, noise_prediction=1),
            kinds=VP,
            options=SA,
            whole_t=True,
            memory="eps",
        ),
        Sampler(
            name="lcm",
            label="LCM",
            algorithm=distilled.lcm,
            kinds=ANY,
            options={"timestep_scaling": Option(distilled.TIMESTEP_SCALING)},
            whole_t=True,
            original_steps=50,
        ),
        Sampler(
            name="tcd",
            label="TCD",
            algorithm=distilled.tcd,
            kinds=VP,
            options={"eta": Option(0.3, 0.0, 1.0)},
            whole_t=True,
            original_steps=50,
        ),
    )
}

"""The samplers by name; `sampler_names.choose_sampler` also knows their other names."""
