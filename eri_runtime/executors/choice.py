"""The list of backends, and the choice of one that can run a bundle on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eri_runtime.bundle import DENOISER, Bundle, ComponentSpec, Verify, WeightHashes
from eri_runtime.checks import boolean
from eri_runtime.errors import BackendError, UnknownNameError, short
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import DEFAULT_SETTINGS, FROM_FILE, Arrays, Executor, Settings
from eri_runtime.executors.openvino.backend import OPENVINO, OPENVINO_BF16
from eri_runtime.executors.ort.backend import CPU, CUDA, CUDA_TF32
from eri_runtime.executors.parted_denoiser import PartedDenoiser
from eri_runtime.executors.pinned import (
    PinnedExecutor,
    PinnedParts,
    UsedFiles,
    open_pinned_stepper,
)
from eri_runtime.executors.step_graph import Stepper
from eri_runtime.executors.tensorrt.backend import TENSORRT
from eri_runtime.executors.thread_count import AUTO as MEASURED
from eri_runtime.executors.thread_count import ThreadChoice, Threads, check_threads

log = logging.getLogger(__name__)
Opener = Callable[[Settings, Arrays], Executor]

BACKENDS: dict[str, Backend] = {
    "tensorrt": TENSORRT,
    "cuda": CUDA,
    "cuda:tf32": CUDA_TF32,
    "openvino": OPENVINO,
    "openvino:bf16": OPENVINO_BF16,
    "cpu": CPU,
}
"""Every backend by the name that `choose` and `eri_runtime.load` accept."""

# Order of preference. One engine runs every component: mixing two would hold both in memory, and no
# mixture has been measured. A backend that rounds more than the bundle runs only when named.
AUTO = ("tensorrt", "cuda", "openvino", "cpu")
COMPARED = ("openvino",)  # backends whose error against PyTorch the export records, if installed


def refusals(bundle: Bundle, backend: str) -> list[str]:
    """Lists why a backend cannot run a bundle on this machine.

    Args:
        bundle: The bundle to run.
        backend: A name in `BACKENDS`.

    Returns:
        One line per reason; empty if the backend can run the bundle.

    Example:
        >>> from eri_runtime.executors import refusals
        >>> refusals(pipe.bundle, "cpu")
        []
    """
    refusal = BACKENDS[backend].of(bundle).refusal
    return _by_reason({name: refusal(spec) for name, spec in bundle.components.items()})


def reasons_against_auto(bundle: Bundle, backend: str) -> list[str]:
    """Returns why `auto` skips a backend that could run this bundle, one line per reason."""
    if backend not in AUTO:
        return ["rounds more than the bundle does"]
    not_compared = (
        f"not compared with PyTorch at export; `--backend {backend}` runs it all the same"
    )
    return _by_reason(
        {
            name: not_compared if backend in COMPARED and backend not in spec.compared else None
            for name, spec in bundle.components.items()
        }
    )


def _by_reason(reasons: dict[str, str | None]) -> list[str]:
    """Lists each reason once, after the names of its components unless all components share it."""
    lines = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [name for name, other in reasons.items() if other == reason]
        lines.append(reason if len(names) == len(reasons) else f"{', '.join(names)}: {reason}")
    return lines


@dataclass(frozen=True)
class Engine:
    """Opens a bundle's components by name on one backend.

    Attributes:
        bundle: The bundle whose components are opened.
        backend: The engine and device that run them.
        settings: Options for the engine.
        hashes: Compares the weights with the manifest.
    """

    bundle: Bundle
    backend: Backend
    settings: Settings
    hashes: WeightHashes

    @property
    def name(self) -> str:
        """The backend's name in `BACKENDS`, or an empty string for any other backend."""
        names = (name for name, known in BACKENDS.items() if known.of(self.bundle) == self.backend)
        return next(names, "")

    def with_threads(self, threads: int | None) -> Engine:
        """Returns the same engine with another number of threads; None for all cores."""
        return replace(self, settings=replace(self.settings, threads=threads))

    def __call__(self, name: str, overrides: Arrays = FROM_FILE) -> Executor:
        """Opens a component.

        Args:
            name: The component's name in the bundle, such as `denoiser` or `vae_decoder`.
            overrides: Tensors that replace tensors of its weights file. Default: none.

        Returns:
            The open component. Close it when done.

        Raises:
            BackendError: If the engine refuses the component.
            IntegrityError: If a file of it was replaced or rewritten after the bundle was loaded.
                Running it raises this error if its weights are damaged.
        """
        spec = self.bundle.components[name]
        if self.settings.streamed and name == "denoiser" and self.backend.streams_in_segments:
            from eri_runtime.executors.sequential_offload import open_segmented

            graphs = [segment.graph for segment in spec.segments]
            opener: Opener = partial(open_segmented, self.bundle, spec, self.backend)
        else:
            graphs = [spec.graph]
            opener = partial(self.backend.executor, self._path(spec.graph), spec)
        files = self._used_files(spec, graphs)
        return PinnedExecutor(files, partial(opener, self.settings), overrides)

    def stepper(self, overrides: Arrays = FROM_FILE) -> Stepper | None:
        """Opens the bundle's step graph.

        Args:
            overrides: Tensors that replace tensors of the denoiser's weights file. Default: none.

        Returns:
            The open step graph. None if the bundle or the backend has none, or if the settings
            stream the denoiser in segments.

        Raises:
            BackendError: If the engine refuses the step graph.
            IntegrityError: If a file of it was replaced or rewritten after the bundle was loaded.
        """
        spec = self.bundle.components["denoiser"]
        in_segments = self.settings.streamed and self.backend.streams_in_segments
        if spec.step is None or in_segments or not self.backend.runs_step_graph(spec):
            return None
        files, graph = self._used_files(spec, [spec.step]), self._path(spec.step)
        opener = partial(self.backend.stepper, graph, spec, self.settings)
        return open_pinned_stepper(files, opener, overrides)

    def _path(self, graph: str) -> Path:
        """Returns the file that is opened for a graph; the graph, if the backend opens none."""
        return self.bundle.path(self.backend.graph_file(graph, self.bundle.files) or graph)

    def parted(self, overrides: Arrays = FROM_FILE) -> PartedDenoiser:
        """Opens the denoiser in parts, for step caching.

        Args:
            overrides: Tensors that replace tensors of its weights file. Default: none.

        Returns:
            The open parts, if `step_cache_refusal` returns None.

        Raises:
            BackendError: If the engine refuses them.
            IntegrityError: If a file was replaced or rewritten after the bundle was loaded.
        """
        spec = self.bundle.components["denoiser"]
        names = [part.graph for part in spec.step_cache]
        graphs = [self._path(name) for name in names]
        opener = partial(self.backend.parted, graphs, spec, self.settings)
        return PinnedParts(self._used_files(spec, names), opener, overrides)

    def _used_files(self, spec: ComponentSpec, graphs: Iterable[str]) -> UsedFiles:
        """Returns the files that are opened for these graphs: theirs, and the weights."""
        opened = [self.backend.graph_file(graph, self.bundle.files) for graph in graphs]
        return UsedFiles(self.bundle, (spec.weights, *filter(None, opened)), self.hashes)


def engine_description(opener: object) -> str:
    """Describes the engine and options of an `Engine`; empty for any other opener."""
    return opener.backend.words(opener.settings) if isinstance(opener, Engine) else ""


def backend_name(opener: object) -> str:
    """Returns the name of an `Engine`'s backend; empty for any other opener."""
    return opener.name if isinstance(opener, Engine) else ""


def step_cache_refusal(opener: object) -> str | None:
    """Returns why an `Engine` cannot cache steps, in a few words; None if it can."""
    if not isinstance(opener, Engine):
        return "components opened by a function of the caller's"
    return opener.backend.step_cache_refusal(opener.bundle.components["denoiser"])


def hashes_of(opener: object) -> WeightHashes | None:
    """Returns what compares the weights of an `Engine`; None for any other opener."""
    return opener.hashes if isinstance(opener, Engine) else None


def choose(
    bundle: Bundle,
    backend: str = "auto",
    *,
    threads: Threads = None,
    low_memory: bool = False,
    verify: Verify = "first",
    cache: bool = True,
) -> Engine:
    """Chooses the backend that runs a bundle.

    A named backend is used or refused; it is never replaced by another. `auto` takes the first of
    TensorRT, CUDA, OpenVINO and ONNX Runtime's CPU provider that runs every component, and logs one
    line for each backend it skips.

    Args:
        bundle: The bundle to run.
        backend: A name in `BACKENDS`, or `auto`.
        threads: Number of threads, 1 to 1024. "auto" measures which number runs the denoiser
            fastest, unless that was kept beside the bundle. Default: all cores.
        low_memory: Leave the weights as pages of their file. Somewhat slower.
        verify: When to hash the weights: as `WeightHashes` takes it.
        cache: Keep what the engine compiles in files, and use what other processes kept.

    Returns:
        An `Engine`, which opens the bundle's components by name.

    Raises:
        UnknownNameError: If there is no backend of that name, or `verify` is unknown.
        UsageError: If `threads` is neither "auto" nor in range.
        BackendError: If the backend cannot run the bundle on this machine.

    Example:
        >>> from eri_runtime.executors import choose
        >>> choose(pipe.bundle, "cpu", threads=1).name
        'cpu'
    """
    if not isinstance(backend, str) or backend not in ("auto", *BACKENDS):
        expected = f"auto or one of {', '.join(BACKENDS)}"
        raise UnknownNameError("backend", got=short(backend), expected=expected)
    low_memory, cache = boolean("low_memory", low_memory), boolean("cache", cache)
    threads = check_threads(threads)
    chosen = backend
    if backend == "auto":
        chosen = first_usable(bundle)
        log.info("backend %s is used", chosen)
    if reasons := refusals(bundle, chosen):
        raise _backend_error(bundle, f"backend {chosen}", reasons)
    settings, engine = Settings(low_memory=low_memory, cache=cache), BACKENDS[chosen].of(bundle)
    opened = Engine(bundle, engine, settings, WeightHashes(bundle, verify))
    return opened.with_threads(measured_threads(opened) if threads == MEASURED else threads)


def measured_threads(engine: Engine) -> int | None:
    """Returns the number of threads that runs an engine's denoiser fastest; None for all cores."""
    unkept = replace(engine, settings=replace(engine.settings, cache=False))
    choice = ThreadChoice(bundle=engine.bundle, backend=engine.backend, settings=engine.settings)
    return choice.find(lambda threads: unkept.with_threads(threads)(DENOISER))


def first_usable(bundle: Bundle) -> str:
    """Returns the first backend of `AUTO` that can be used; logs why those before it cannot.

    Raises `BackendError` if none can.
    """
    skipped = []
    for name in AUTO:
        reasons = refusals(bundle, name) or reasons_against_auto(bundle, name)
        if not reasons:
            return name
        skipped.append(f"{name}: {'; '.join(reasons)}")
        log.info("backend %s", skipped[-1])
    raise _backend_error(bundle, "backend auto", skipped)


def _backend_error(bundle: Bundle, backend: str, reasons: list[str]) -> BackendError:
    fix = f"`eri inspect {bundle.root}` says what can"
    return BackendError(
        backend, got="; ".join(reasons), expected="a backend that can run this bundle here", fix=fix
    )


def describe_backends(bundle: Bundle) -> Iterator[str]:
    """Describes every backend in one line: how it would run the bundle, or why it cannot.

    Args:
        bundle: The bundle to run.

    Yields:
        One line per backend, in the order of `BACKENDS`.
    """
    for name, backend in BACKENDS.items():
        if reasons := refusals(bundle, name):
            yield f"backend {name}: no; {'; '.join(reasons)}"
            continue
        why = reasons_against_auto(bundle, name)
        not_by_auto = f" (not by auto: {'; '.join(why)})" if why else ""
        words = backend.of(bundle).words(DEFAULT_SETTINGS)
        yield f"backend {name}: can run it here{not_by_auto}; {words}"
