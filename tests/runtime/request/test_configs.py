"""The configurations: their fields, their words, and what they refuse."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.errors import UsageError
from eri_runtime.request.configs import (
    LIMITS,
    AncestralSamplerConfig,
    GuidanceConfig,
    SamplingConfig,
)
from eri_runtime.sampling.samplers import SAMPLERS

FIELDS = {
    SamplingConfig: "num_inference_steps guidance_scale height width seed output_dir",
    GuidanceConfig: "guidance_scale guidance_embedding bypass_guidance",
    AncestralSamplerConfig: "eta s_churn s_tmin s_tmax s_noise",
}
anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.lists(st.floats() | st.text() | st.lists(st.floats()), max_size=3)
    | st.sampled_from(
        [np.zeros((2, 3)), np.array(1.0), np.array(["x"]), 10**400, Path("x"), object()]
    )
)


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_are_in_the_documented_order(kind):
    assert [field.name for field in fields(kind)] == FIELDS[kind].split()


def test_the_documented_defaults():
    config = SamplingConfig()
    assert config == SamplingConfig(30, 7.5, 1024, 1024, None, Path("outputs"))
    words = {"num_inference_steps": 30, "guidance_scale": 7.5, "height": 1024, "width": 1024}
    assert config.words() == words
    assert replace(config, seed=0).words() == {**words, "seed": 0}


def test_numbers_become_plain_ones():
    config = SamplingConfig(
        np.int32(5), np.float32(2.5), np.int64(64), 64, np.uint64(2**64 - 1), "x"
    )
    assert config == SamplingConfig(5, 2.5, 64, 64, 2**64 - 1, Path("x"))
    assert {type(value) for value in config.words().values()} == {int, float}
    assert type(AncestralSamplerConfig(eta=np.float32(0.5)).eta) is float


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SamplingConfig().height = 64


def test_the_words_of_guidance():
    assert GuidanceConfig(7).words() == {"guidance_scale": 7.0}
    config = GuidanceConfig(3.5, np.array([1.0, 2.0], np.float32), True)
    assert config == GuidanceConfig(3.5, [1, 2], bypass_guidance=True)
    assert hash(config) == hash(GuidanceConfig(3.5, (1, 2), True))
    words = {"guidance_scale": 3.5, "guidance_embedding": (1.0, 2.0), "bypass_guidance": True}
    assert config.words() == words
    assert GuidanceConfig(0, 2.5).words() == {"guidance_scale": 0.0, "guidance_embedding": 2.5}


def test_the_words_of_a_stochastic_sampler():
    assert AncestralSamplerConfig().words() == {"sampler_options": {}}
    config = AncestralSamplerConfig(0, s_tmax=float("inf"))
    assert config.words() == {"sampler_options": {"eta": 0.0, "s_tmax": float("inf")}}
    churned = AncestralSamplerConfig(s_churn=3, s_tmin=0.1, s_tmax=9.0, s_noise=1.01)
    assert SAMPLERS["heun"].checked(churned.options) == churned.options


def test_every_sampler_takes_what_a_config_takes():
    for sampler in SAMPLERS.values():
        for name in sampler.options.keys() & LIMITS.keys():
            low, high = LIMITS[name].low, LIMITS[name].high
            assert low <= sampler.options[name].low <= sampler.options[name].high <= high


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SamplingConfig, "num_inference_steps", 0),
        (SamplingConfig, "num_inference_steps", 20.0),
        (SamplingConfig, "num_inference_steps", True),
        (SamplingConfig, "guidance_scale", float("nan")),
        (SamplingConfig, "guidance_scale", -0.5),
        (SamplingConfig, "guidance_scale", None),
        (SamplingConfig, "height", -64),
        (SamplingConfig, "width", "64"),
        (SamplingConfig, "seed", -1),
        (SamplingConfig, "seed", 2**64),
        (SamplingConfig, "seed", [1, 2]),
        (SamplingConfig, "output_dir", None),
        (GuidanceConfig, "guidance_scale", float("inf")),
        (GuidanceConfig, "guidance_scale", 10**400),
        (GuidanceConfig, "guidance_embedding", np.zeros((1, 256))),
        (GuidanceConfig, "guidance_embedding", np.array(1.0)),
        (GuidanceConfig, "guidance_embedding", []),
        (GuidanceConfig, "guidance_embedding", [1.0, -1.0]),
        (GuidanceConfig, "bypass_guidance", 1),
        (AncestralSamplerConfig, "eta", 1.5),
        (AncestralSamplerConfig, "s_churn", -1),
        (AncestralSamplerConfig, "s_tmin", float("nan")),
        (AncestralSamplerConfig, "s_tmax", "inf"),
        (AncestralSamplerConfig, "s_noise", 3),
    ],
)
def test_a_bad_field_is_named(kind, field, value):
    needed = {"guidance_scale": 1.0} if kind is GuidanceConfig else {}
    with pytest.raises(UsageError, match=rf"^{field}(\[1\])?: got"):
        kind(**{**needed, field: value})


def test_levels_of_churn_are_a_range():
    with pytest.raises(UsageError, match="s_tmin: got 2, expected at most s_tmax, which is 1"):
        AncestralSamplerConfig(s_tmin=2, s_tmax=1)


@pytest.mark.parametrize("kind", FIELDS)
@given(data=st.data())
def test_anything_is_taken_or_refused(kind, data):
    """No other error than `UsageError`, and what is taken can be shown and compared."""
    names = FIELDS[kind].split()
    chosen = data.draw(st.sets(st.sampled_from(names)) | st.just(set(names)))
    values = {name: data.draw(anything, name) for name in {*names[:1], *chosen}}
    try:
        config = kind(**values)
    except UsageError as error:
        named = error.offender.partition("[")[0]
    else:
        named = names[0]
        assert config == replace(config)
        assert set(config.words()) <= {*names, "sampler_options"}
    assert named in names
