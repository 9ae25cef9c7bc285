"""`threads="auto"`: the number of CPU threads that runs a denoiser fastest, by measurement.

Starts with all cores that the process may keep busy, and halves their number for as long as that is
faster. What is found is kept beside the bundle, by engine, machine, weights and sizes, so a later
process measures nothing and gets the same bits: an engine may sum in another order with another
number of threads.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

import numpy as np

from eri_runtime.bundle import DENOISER, Bundle, ComponentSpec
from eri_runtime.bundle.entry_folders import EntryFolders, kept_beside
from eri_runtime.checks import integer
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import Arrays, Executor, Settings, shape_of
from eri_runtime.executors.processor import processor, usable_cores

AUTO: Literal["auto"] = "auto"
Threads = int | Literal["auto"] | None
MOST_THREADS = 1024
SUFFIX = ".threads"
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino")
RUNS, SECONDS = 3, 2.0  # of each number: at most so many runs, and none after so long
FASTER = 0.97  # of the time: fewer threads must save more than measurements differ by

log = logging.getLogger(__name__)


class OpensDenoiser(Protocol):
    """Opens the denoiser with a number of threads."""

    def __call__(self, threads: int) -> Executor:
        """Opens it."""


def check_threads(value: object) -> Threads:
    """Returns a number of threads, "auto", or None for all cores.

    Raises `UsageError` for anything else.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == AUTO:
        return AUTO
    try:
        return integer("threads", value, 1, MOST_THREADS)
    except UsageError as error:
        expected = f"auto or {error.expected}"
        raise UsageError("threads", got=error.got, expected=expected) from None


@dataclass(frozen=True, kw_only=True)
class ThreadChoice:
    """Finds the number of threads for a bundle on one backend.

    Attributes:
        bundle: The bundle.
        backend: The engine, bound to the bundle.
        settings: The options that it is opened with, but for the number of threads.
    """

    bundle: Bundle
    backend: Backend
    settings: Settings

    def find(self, opens: OpensDenoiser) -> int | None:
        """Returns the number of threads: the one that was kept, or else the one measured now.

        Measures at the sizes that the denoiser is tuned for. Returns None, all cores, for an engine
        that computes elsewhere.
        """
        if not self.backend.computes_on_cpu:
            return None
        found = self._kept()
        if found is None:
            try:
                found = fastest(opens, usual_inputs(self.bundle.components[DENOISER]))
            except (BackendError, MemoryError) as error:  # raised again where it is opened for use
                log.warning("all cores are used, as no step could be measured: %s", error)
                return None
            if self.settings.cache:
                self._entries.write(self._key, str(found).encode())
        log.info("%d threads are used", found)
        return found

    def _kept(self) -> int | None:
        """Returns what an earlier process found, if it may be used."""
        data = self._entries.read(self._key) if self.settings.cache else None
        text = (data or b"").decode("ascii", "replace")
        return int(text) if text.isdigit() and 1 <= int(text) <= usable_cores() else None

    @property
    def _entries(self) -> EntryFolders:
        return kept_beside(self.bundle.root, SUFFIX)

    @property
    def _key(self) -> str:
        """Everything that the finding depends on, as a text."""
        spec = self.bundle.components[DENOISER]
        facts = {
            "engine": self.backend.words(replace(self.settings, threads=None)),
            "versions": library_versions(),
            "machine": [*processor(), usable_cores()],
            "files": [self.bundle.files[name].sha256 for name in (spec.graph, spec.weights)],
            "sizes": usual_sizes(spec),
        }
        return json.dumps(facts, sort_keys=True)


def library_versions() -> dict[str, str]:
    """Returns the versions of the engines that compute on a CPU and are installed."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def usual_inputs(spec: ComponentSpec) -> dict[str, np.ndarray]:
    """Returns inputs of a component, at the sizes that it is tuned for."""
    rng, found = np.random.default_rng(0), {}
    for tensor in spec.inputs:
        values = rng.standard_normal(shape_of(tensor, usual_sizes(spec)), np.float32)
        found[tensor.name] = values.astype(tensor.dtype)
    return found


def usual_sizes(spec: ComponentSpec) -> dict[str, int]:
    """Returns the size of each dynamic dimension that a component is tuned for, by name."""
    return {name: sizes.opt for name, sizes in spec.ranges.items()}


def numbers(most: int) -> Iterator[int]:
    """Yields numbers of threads to try: all cores, half of them, and so on."""
    while most:
        yield most
        most //= 2


def fastest(opens: OpensDenoiser, inputs: Arrays) -> int:
    """Returns the number of threads that runs a denoiser fastest on these inputs.

    Args:
        opens: Opens the denoiser with a number of threads.
        inputs: Its inputs.
    """
    best, least = 0, 0.0
    for number in numbers(usable_cores()):
        with opens(number) as executor:
            seconds = seconds_of_run(executor, inputs)
        log.info("a step takes %.4f s with %d threads", seconds, number)
        if best and seconds > FASTER * least:
            break
        best, least = number, seconds
    return best


def seconds_of_run(executor: Executor, inputs: Arrays) -> float:
    """Returns the time of the quickest of a few runs, after one that warms it up."""
    executor.run(inputs)
    begun, found = time.perf_counter(), list[float]()
    while len(found) < RUNS and (not found or time.perf_counter() - begun < SECONDS):
        started = time.perf_counter()
        executor.run(inputs)
        found.append(time.perf_counter() - started)
    return min(found)
