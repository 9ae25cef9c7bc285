"""Builds one plan from one graph; on out-of-memory, again with less workspace and a lower level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eri_export.tensorrt import timing_cache
from eri_export.tensorrt.attention import Attention, mark
from eri_export.tensorrt.build_errors import build_error, failure_kind
from eri_export.tensorrt.build_flags import configure, flags_of, network_flags
from eri_export.tensorrt.build_monitor import Monitor, make_monitor
from eri_export.tensorrt.build_options import BuildOptions
from eri_export.tensorrt.library import Engine
from eri_export.tensorrt.profiles import Profile, make_profiles, shapes_of, sizes
from eri_runtime.bundle import ComponentSpec
from eri_runtime.errors import BackendError

log = logging.getLogger(__name__)

Advance = Callable[[int, int], object]  # steps done, of how many

FIRST_LIMIT = 8 << 30  # bytes of workspace for the first retry when there was no limit
RETRIES = 4


@dataclass(frozen=True)
class Attempt:
    """The settings of one build.

    `decompose` makes every attention layer decomposable. `capturable` builds a plan whose runs can
    be captured as CUDA graphs; it fails if the largest sizes need too much memory at once.
    """

    level: int
    workspace: int | None
    decompose: bool = False
    capturable: bool = False

    def __str__(self) -> str:
        limit = "no workspace limit" if self.workspace is None else f"{self.workspace} bytes"
        return f"level {self.level}, {limit}" + (", for CUDA graphs" if self.capturable else "")


@dataclass(frozen=True)
class Built:
    """A plan's bytes (the engine's buffer), profiles and attention layers, and its settings."""

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
    """Builds the plan of a graph of component `spec`.

    Raises `BackendError` with the engine's message if there is no plan.
    """

    def once(attempt: Attempt) -> Built | None:
        return _once(engine, graph, spec, options, attempt, advance)

    is_step = spec.step is not None and graph.match(spec.step)
    differs = flags_of(engine, options) != flags_of(engine, options, capturable=False)
    return try_all(str(graph), options, once, engine.errors, capturable=is_step and differs)


def try_all(
    where: str,
    options: BuildOptions,
    once: Callable[[Attempt], Built | None],
    errors: list[str],
    *,
    capturable: bool = False,
) -> Built:
    """Returns the plan of the first successful attempt; `errors` holds the last one's messages.

    A plan that is to be `capturable` is built without that before its level is lowered.

    Raises `BackendError` if every attempt fails.
    """
    for attempt in _attempts(options, capturable):
        if (built := once(attempt)) is not None:
            return built
        if failure_kind(errors) == "attention":
            log.warning("%s: an attention layer does not fuse: all may be decomposed", where)
            attempt = replace(attempt, decompose=True)
            if (built := once(attempt)) is not None:
                return built
        if failure_kind(errors) != "memory":
            break
        log.warning("%s: out of memory with %s", where, attempt)
    raise build_error(where, errors)


def _attempts(options: BuildOptions, capturable: bool) -> Iterator[Attempt]:
    """Yields the user's settings, then half the workspace and one level less each time."""
    if capturable:
        yield Attempt(options.level, options.workspace, capturable=True)
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
    """Runs one build with new engine objects, as a builder modifies them; None for no plan."""
    engine.errors.clear()
    module = engine.module
    flags = flags_of(engine, options, capturable=attempt.capturable)
    builder = module.Builder(engine.logger)
    network = builder.create_network(network_flags(engine, flags))
    parser = module.OnnxParser(network, engine.logger)  # holds the weights until the plan is built
    if not parser.parse(graph.read_bytes(), str(graph)):
        messages = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        expected = f"a graph that {engine.name} {engine.version} parses"
        raise BackendError(graph, got="; ".join(messages) or "a refusal", expected=expected)
    attention = mark(module, network, every=attempt.decompose)
    shapes = shapes_of(network)
    profiles = make_profiles(spec, shapes, options.profiles)
    config = builder.create_builder_config()
    for profile in profiles:
        native = builder.create_optimization_profile()
        for name, shape in shapes.items():
            native.set_shape(name, *(sizes(shape, profile, end) for end in ("min", "opt", "max")))
        config.add_optimization_profile(native)
    configure(engine, config, flags)
    _limit(engine, config, options, attempt)
    monitor = make_monitor(module, advance)
    config.progress_monitor = monitor
    with timing_cache.cache(config, options.timing_cache):
        plan = builder.build_serialized_network(network, config)
    _raise_interrupt(monitor)
    return None if plan is None else Built(plan, profiles, attention, attempt)


def _limit(engine: Engine, config: Any, options: BuildOptions, attempt: Attempt) -> None:
    """Sets the level, the workspace and the GPUs of a build."""
    module = engine.module
    config.builder_optimization_level = attempt.level
    if attempt.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, attempt.workspace)
    if engine.capabilities:
        config.num_compute_capabilities = len(options.capabilities)
        for i, capability in enumerate(options.capabilities):
            name = "SM" + capability.replace(".", "")
            config.set_compute_capability(getattr(module.ComputeCapability, name), i)


def _raise_interrupt(monitor: Monitor) -> None:
    if monitor.interrupt is not None:
        raise monitor.interrupt
