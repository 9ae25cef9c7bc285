"""The user's options for building plans, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from eri_export.tensorrt.library import Engine
from eri_runtime.bundle import EngineName, PlanFlag
from eri_runtime.errors import UsageError, short
from eri_runtime.executors import compute_capability

ProfileKind = Literal["best", "range"]

LEVELS = range(6)
# the options an engine does not have -> what to do instead
WITHOUT: Mapping[EngineName, Mapping[str, str]] = {
    "tensorrt": {},
    "tensorrt-rtx": {
        "hardware-compatible": "name every GPU with --compute-capability: one plan serves them all",
        "timing cache": "it times no kernels; leave --timing-cache out",
    },
}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options for building TensorRT plans.

    Attributes:
        engine: "tensorrt" or "tensorrt-rtx".
        capabilities: Compute capabilities to build for, such as ("8.9",); default: that of this
            machine's GPU.
        profiles: Optimisation profiles: "best" serves the best size alone, "range" every size.
        level: Builder optimisation level, 0 to 5; higher levels search longer for fast kernels.
        workspace: Most bytes of GPU memory that a kernel may use for itself; default: no limit.
        flags: "refit", "stripped", "streaming", "hardware-compatible", "version-compatible".
        timing_cache: A file from which the builder reads kernel timings and to which it adds;
            default: none.
    """

    engine: EngineName = "tensorrt-rtx"
    capabilities: tuple[str, ...] = ()
    profiles: tuple[ProfileKind, ...] = ("best", "range")
    level: int = 3
    workspace: int | None = None
    flags: tuple[PlanFlag, ...] = ()
    timing_cache: Path | None = None


def check_options(options: BuildOptions, engine: Engine) -> tuple[str, ...]:
    """Returns the compute capabilities to build for.

    Raises `UsageError` for a value that is unknown or that the engine does not support.
    """
    if options.level not in LEVELS:
        raise UsageError("level", got=options.level, expected=f"0 to {LEVELS[-1]}")
    for flag in options.flags:
        if flag not in get_args(PlanFlag):
            raise UsageError("flags", got=short(flag), expected=", ".join(get_args(PlanFlag)))
    kinds = get_args(ProfileKind)
    if not options.profiles or not set(options.profiles) <= set(kinds):
        raise UsageError("profiles", got=options.profiles, expected=f"some of {', '.join(kinds)}")
    features = (*options.flags, *(["timing cache"] if options.timing_cache else []))
    for feature in features:
        if feature in WITHOUT[engine.name]:
            fix = WITHOUT[engine.name][feature]
            raise UsageError(engine.name, got=feature, expected="something it has", fix=fix)
    return _capabilities(options.capabilities, engine)


def _capabilities(named: tuple[str, ...], engine: Engine) -> tuple[str, ...]:
    """Returns the named compute capabilities, or this machine's, in the engine's order."""
    here = compute_capability()
    allowed = engine.capabilities or tuple(filter(None, [here]))
    where = f"compute capability of {engine.name}"
    if not allowed:
        fix = "build on the machine that will run the plan"
        raise UsageError(where, got="no NVIDIA GPU", expected="the GPU to build for", fix=fix)
    if not named and here is None:
        fix = "name the GPU to build for, as --compute-capability 8.9"
        raise UsageError(where, got="no NVIDIA GPU here", expected=", ".join(allowed), fix=fix)
    chosen = named or tuple(filter(None, [here]))
    for capability in chosen:
        if capability not in allowed:
            raise UsageError(where, got=capability, expected=" or ".join(allowed))
    return tuple(each for each in allowed if each in chosen)
