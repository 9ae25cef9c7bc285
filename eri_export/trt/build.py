"""One graph to one plan, with less workspace and a lower level where memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eri_export.trt import timing
from eri_export.trt.attention import Attention, mark
from eri_export.trt.engine import Engine
from eri_export.trt.monitor import Monitor, make_monitor
from eri_export.trt.options import BuildOptions
from eri_export.trt.profiles import Profile, make_profiles, shapes_of, sizes
from eri_export.trt.refusals import kind_of, refusal
from eri_runtime.errors import BackendError
from eri_runtime.spec import ComponentSpec, PlanFlag

log = logging.getLogger(__name__)

Advance = Callable[[int, int], object]  # steps done, of how many

FLAGS: Mapping[PlanFlag, str] = {
    "refit": "REFIT",
    "stripped": "STRIP_PLAN",
    "streaming": "WEIGHT_STREAMING",
    "version-compatible": "VERSION_COMPATIBLE",
}
FIRST_LIMIT = 8 << 30  # bytes: where to begin to save when there was no limit
RETRIES = 4


@dataclass(frozen=True)
class Attempt:
    """What a build is tried with; `decompose` lets every attention layer be taken apart."""

    level: int
    workspace: int | None
    decompose: bool = False

    def __str__(self) -> str:
        limit = "no workspace limit" if self.workspace is None else f"{self.workspace} bytes"
        return f"level {self.level}, {limit}"


@dataclass(frozen=True)
class Built:
    """A plan's bytes (the engine's buffer), its profiles, its attention, how it came to be."""

    plan: Any
    profiles: tuple[Profile, ...]
    attention: tuple[Attention, ...]
    attempt: Attempt


def build(
    engine: Engine,
    graph: Path,
    spec: ComponentSpec,
    options: BuildOptions,
    advance: Advance = lambda _done, _total: None,
) -> Built:
    """The plan of a graph of component `spec`; raises `BackendError` with the engine's reason."""

    def once(attempt: Attempt) -> Built | None:
        return _once(engine, graph, spec, options, attempt, advance)

    return try_all(str(graph), options, once, engine.errors)


def try_all(
    where: str, options: BuildOptions, once: Callable[[Attempt], Built | None], errors: list[str]
) -> Built:
    """The first attempt that gives a plan; `errors` are what the last one said."""
    for attempt in _attempts(options):
        if (built := once(attempt)) is not None:
            return built
        if kind_of(errors) == "attention":
            log.warning("%s: an attention layer does not fuse: all may be decomposed", where)
            attempt = replace(attempt, decompose=True)
            if (built := once(attempt)) is not None:
                return built
        if kind_of(errors) != "memory":
            break
        log.warning("%s: out of memory with %s", where, attempt)
    raise refusal(where, errors)


def _attempts(options: BuildOptions) -> Iterator[Attempt]:
    """As asked, then half the workspace and a level less each time."""
    yield Attempt(options.level, options.workspace)
    limit = options.workspace or 2 * FIRST_LIMIT
    for retry in range(1, RETRIES + 1):
        yield Attempt(max(0, options.level - retry), limit >> retry)


def _once(
    engine: Engine,
    graph: Path,
    spec: ComponentSpec,
    options: BuildOptions,
    attempt: Attempt,
    advance: Advance,
) -> Built | None:
    """One build from the start, as a builder changes what it was given; None for no plan."""
    engine.errors.clear()
    module = engine.module
    builder = module.Builder(engine.logger)
    network = builder.create_network(_strongly_typed(module))
    parser = module.OnnxParser(network, engine.logger)  # holds the weights until the plan is built
    if not parser.parse(graph.read_bytes(), str(graph)):
        told = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        expected = f"a graph that {engine.name} {engine.version} parses"
        raise BackendError(graph, got="; ".join(told) or "a refusal", expected=expected)
    attention = mark(module, network, every=attempt.decompose)
    shapes = shapes_of(network)
    profiles = make_profiles(spec, shapes, options.profiles)
    config = builder.create_builder_config()
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shape in shapes.items():
            made.set_shape(name, *(sizes(shape, profile, end) for end in ("min", "opt", "max")))
        config.add_optimization_profile(made)
    _configure(engine, config, options, attempt)
    monitor = make_monitor(module, advance)
    config.progress_monitor = monitor
    with timing.cache(config, options.timing_cache):
        plan = builder.build_serialized_network(network, config)
    _raise_interrupt(monitor)
    return None if plan is None else Built(plan, profiles, attention, attempt)


def _configure(engine: Engine, config: Any, options: BuildOptions, attempt: Attempt) -> None:
    module = engine.module
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # layer names stay in the plan
    config.builder_optimization_level = attempt.level
    if attempt.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, attempt.workspace)
    for flag in options.flags:
        if flag == "hardware-compatible":
            level = module.HardwareCompatibilityLevel.AMPERE_PLUS
            config.hardware_compatibility_level = level
        else:
            config.set_flag(getattr(module.BuilderFlag, FLAGS[flag]))
    if engine.capabilities:
        config.num_compute_capabilities = len(options.capabilities)
        for i, capability in enumerate(options.capabilities):
            name = "SM" + capability.replace(".", "")
            config.set_compute_capability(getattr(module.ComputeCapability, name), i)


def _strongly_typed(module: Any) -> int:
    """The precision is the graph's: no layer is computed in another type than its inputs have."""
    return 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _raise_interrupt(monitor: Monitor) -> None:
    if monitor.interrupt is not None:
        raise monitor.interrupt
