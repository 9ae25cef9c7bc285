"""The flags of a build: what is set under each library and version, and what is said of it."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import tensorrt_rtx

from eri_export.commands.build import FLAGS as COMMAND_OPTIONS
from eri_export.tensorrt import build_flags
from eri_export.tensorrt.attention import mark
from eri_export.tensorrt.build_flags import (
    FLAGS,
    LIBRARIES,
    REFUSED,
    configure,
    describe_flags,
    flag_table,
    flags_of,
    network_flags,
)
from eri_export.tensorrt.build_options import WITHOUT, BuildOptions
from eri_export.tensorrt.library import Engine, load_engine
from eri_runtime.bundle import PlanFlag
from eri_runtime.errors import UsageError

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "engines.md"
BUILDER = ("REFIT", "STRIP_PLAN", "WEIGHT_STREAMING", "VERSION_COMPATIBLE")


def library(version, *without, name="tensorrt"):
    """TensorRT of a version, of which only the enumerations are there, without some members."""
    members = {
        "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
        "BuilderFlag": ("TF32", *BUILDER, "REQUIRE_USER_ALLOCATION"),
        "ProfilingVerbosity": ("LAYER_NAMES_ONLY", "DETAILED"),
        "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS"),
    }
    kinds = {
        kind: IntEnum(kind, [each for each in names if each not in without], start=0)
        for kind, names in members.items()
    }
    return Engine(name, SimpleNamespace(__version__=version, **kinds), None)


def names(engine, *flags):
    return [flag.name for flag in flags_of(engine, BuildOptions(flags=flags))]


def test_the_guide_shows_the_table():
    assert flag_table() in GUIDE.read_text(encoding="utf-8")


def test_every_plan_flag_has_a_row_and_an_option_of_the_command():
    assert {flag.asked for flag in FLAGS} == {None, *get_args(PlanFlag)}
    assert {flag: option for option, (flag, _) in COMMAND_OPTIONS.items()} == build_flags.OPTIONS


def test_what_the_table_says_is_refused_is_refused():
    engines = {"tensorrt": LIBRARIES[:2], "tensorrt-rtx": LIBRARIES[2:]}
    for engine, columns in engines.items():
        for column in columns:
            said = {
                flag.asked for flag in FLAGS if flag.libraries[LIBRARIES.index(column)] == REFUSED
            }
            assert said == WITHOUT[engine].keys() & {*get_args(PlanFlag)}


def test_the_real_library_has_every_flag_that_is_set_with_it():
    for flag in FLAGS:
        if flag.libraries[2] != REFUSED:
            assert hasattr(getattr(tensorrt_rtx, flag.enumeration), flag.name), flag


@pytest.mark.parametrize("asked", [(), ("refit",), ("stripped",), ("streaming", "refit")])
def test_the_real_builder_takes_them(asked):
    """A step can be captured only with the flag for user allocation, which streaming excludes."""
    engine = load_engine("tensorrt-rtx")
    flags = flags_of(engine, BuildOptions(flags=asked))
    builder = engine.module.Builder(engine.logger)
    config = builder.create_builder_config()
    configure(engine, config, flags)
    kind = engine.module.BuilderFlag
    assert config.get_flag(kind.REQUIRE_USER_ALLOCATION) == ("streaming" not in asked)
    for flag, name in zip(("refit", "stripped", "streaming"), BUILDER, strict=False):
        assert config.get_flag(getattr(kind, name)) == (flag in asked)
    assert config.profiling_verbosity == engine.module.ProfilingVerbosity.DETAILED
    network = builder.create_network(network_flags(engine, flags))
    assert network.get_flag(engine.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_a_version_without_the_flag_for_user_allocation_builds_without_it():
    always = ["STRONGLY_TYPED", "REQUIRE_USER_ALLOCATION", "DETAILED"]
    assert names(library("11.4.0.106")) == always
    assert names(library("10.4.0.26", "REQUIRE_USER_ALLOCATION")) == [always[0], always[2]]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_real_builder_refuses_user_allocation_beside_streaming(streaming):
    """Should a later version take both, streamed plans can be captured too."""
    engine = load_engine("tensorrt-rtx")
    module, flags = engine.module, flags_of(engine, BuildOptions())
    engine.errors.clear()
    builder = module.Builder(engine.logger)
    network = builder.create_network(network_flags(engine, flags))
    x = network.add_input("x", module.float16, (4, 8))
    network.mark_output(network.add_softmax(x).get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(module.ComputeCapability.SM89, 0)
    configure(engine, config, flags)
    if streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    plan = builder.build_serialized_network(network, config)
    assert (plan is None) == streaming
    assert ("REQUIRE_USER_ALLOCATION is not compatible" in str(engine.errors)) == streaming


def test_a_network_is_strongly_typed_where_there_is_such_a_flag():
    """TensorRT 11 makes every network so; should it drop the flag, none is given."""
    for engine, bits in ((library("10.4"), 0b10), (library("12.0", "STRONGLY_TYPED"), 0)):
        assert network_flags(engine, flags_of(engine, BuildOptions())) == bits


def test_hardware_compatible_is_a_level_of_the_configuration():
    engine, config = library("11.4.0.106"), SimpleNamespace(set_flag=lambda _: None)
    configure(engine, config, flags_of(engine, BuildOptions(flags=("hardware-compatible",))))
    level = engine.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.hardware_compatibility_level is level


def test_a_flag_that_the_version_lacks_is_refused():
    engine = library("10.0.0.6", "WEIGHT_STREAMING")
    with pytest.raises(
        UsageError,
        match=r"tensorrt 10\.0\.0\.6: got streaming, expected a version with "
        r"BuilderFlag\.WEIGHT_STREAMING; install a newer version",
    ):
        flags_of(engine, BuildOptions(flags=("streaming",)))


def test_the_line_of_the_command_names_each():
    line = describe_flags(library("11.4.0.106"), BuildOptions(flags=("refit",)))
    assert line == (
        "tensorrt 11.4.0.106 sets NetworkDefinitionCreationFlag.STRONGLY_TYPED, "
        "BuilderFlag.REQUIRE_USER_ALLOCATION for step graphs, ProfilingVerbosity.DETAILED, "
        "BuilderFlag.REFIT"
    )


def test_a_version_without_attention_layers_has_none_to_mark():
    module = SimpleNamespace(LayerType=SimpleNamespace())
    assert mark(module, SimpleNamespace(num_layers=3)) == ()
