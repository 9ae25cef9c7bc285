"""What a sampler refuses: names, options and numbers of steps."""

from __future__ import annotations

import pytest
from diffusers import EulerDiscreteScheduler

from eri_runtime import SAMPLERS, make_schedule, make_table
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.sampling import find_sampler


def test_one_linspace_step_is_at_t_0():
    """As in diffusers, though there is nothing to denoise."""
    spec = ScheduleSpec(kind="vp", prediction="eps", spacing="linspace")
    assert make_schedule(spec, 1, 64, whole_t=False).t.tolist() == [0.0, 0.0]
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0.0]


def test_an_unknown_sampler_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"got 'eulr', .*did you mean 'euler'"):
        find_sampler("eulr", "vp")


def test_a_sampler_of_another_schedule_is_refused():
    with pytest.raises(UnknownNameError, match="another kind of schedule"):
        find_sampler("ddim", "flow")


def test_eta_is_refused_where_it_would_be_ignored():
    spec = ScheduleSpec(kind="flow", prediction="flow")
    with pytest.raises(UsageError, match="eta"):
        make_table(
            SAMPLERS["flow_euler"],
            make_schedule(spec, 4, 64, whole_t=False),
            spec,
            options={"eta": 0.5},
        )


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(UsageError, match="num_inference_steps"):
        SAMPLERS["euler"].schedule(ScheduleSpec(kind="vp", prediction="eps"), steps, 64)
