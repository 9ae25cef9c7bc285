"""The engines, and which of them can run a bundle here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from eri_runtime.errors import BackendError, UnknownNameError, UsageError
from eri_runtime.executors.base import FROM_FILE, Arrays, Backend, Executor, Settings
from eri_runtime.executors.openvino import OPENVINO, OPENVINO_BF16
from eri_runtime.executors.ort import CPU, CUDA
from eri_runtime.executors.stepper import Stepper
from eri_runtime.executors.tensorrt import TENSORRT
from eri_runtime.spec import Bundle

log = logging.getLogger(__name__)

BACKENDS: dict[str, Backend] = {
    "tensorrt": TENSORRT,
    "cuda": CUDA,
    "openvino": OPENVINO,
    "openvino:bf16": OPENVINO_BF16,
    "cpu": CPU,
}
# One engine runs every component: a mixture would be two of them in memory, and nobody's measured
# pair. What rounds more than the bundle says is taken by its name only.
AUTO = ("tensorrt", "cuda", "openvino", "cpu")
COMPARED = ("openvino",)  # whose own error the export writes down, where it is installed


def refusals(bundle: Bundle, backend: str) -> list[str]:
    """Why `backend` cannot run this bundle here: a line for each reason; empty if it can."""
    refusal = BACKENDS[backend].of(bundle).refusal
    return _by_reason({name: refusal(spec) for name, spec in bundle.components.items()})


def doubts(bundle: Bundle, backend: str) -> list[str]:
    """Why `auto` leaves out a backend that could run this bundle: a line, or none."""
    if backend not in AUTO:
        return ["rounds more than the bundle does"]
    unseen = f"not compared with PyTorch at export; `--backend {backend}` runs it all the same"
    return _by_reason(
        {
            name: unseen if backend in COMPARED and backend not in spec.compared else None
            for name, spec in bundle.components.items()
        }
    )


def _by_reason(reasons: dict[str, str | None]) -> list[str]:
    """Each reason once, after the components it is of, unless it is of all."""
    lines = []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [name for name, each in reasons.items() if each == reason]
        lines.append(reason if len(names) == len(reasons) else f"{', '.join(names)}: {reason}")
    return lines


@dataclass(frozen=True)
class Engine:
    """What opens a bundle's components by name, on one backend."""

    bundle: Bundle
    backend: Backend
    settings: Settings

    @property
    def name(self) -> str:
        """The backend's, as `choose` takes it; nothing for one that is not among them."""
        known = (name for name, each in BACKENDS.items() if each.of(self.bundle) == self.backend)
        return next(known, "")

    def __call__(self, name: str, overrides: Arrays = FROM_FILE) -> Executor:
        """Open a component, with `overrides` in the place of the tensors of its weights file.

        Raises `BackendError` where the engine refuses.
        """
        spec = self.bundle.components[name]
        if self.settings.streamed and name == "denoiser" and self.backend.in_segments:
            from eri_runtime.executors.segmented import open_segmented

            return open_segmented(self.bundle, spec, self.backend, self.settings, overrides)
        return self.backend.executor(self.bundle.path(spec.graph), spec, self.settings, overrides)

    def stepper(self, overrides: Arrays = FROM_FILE) -> Stepper | None:
        """Open the step graph with the denoiser's `overrides`, if there is one to be run."""
        spec = self.bundle.components["denoiser"]
        if spec.step is None or (self.settings.streamed and self.backend.in_segments):
            return None
        return self.backend.stepper(self.bundle.path(spec.step), spec, self.settings, overrides)


def words_of(opener: object) -> str:
    """The engine and its options of what opens components; nothing for a caller's own function."""
    return opener.backend.words(opener.settings) if isinstance(opener, Engine) else ""


def choose(
    bundle: Bundle, backend: str = "auto", *, threads: int | None = None, low_memory: bool = False
) -> Engine:
    """What opens a component by name, on the named backend and no other, or the first that can.

    Why `auto` leaves a backend out is logged, a line for each. Raises `UnknownNameError` for a name
    that is none, `BackendError` where it cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        expected = f"auto or one of {', '.join(BACKENDS)}"
        raise UnknownNameError("backend", got=repr(backend), expected=expected)
    if threads is not None and threads < 1:
        raise UsageError("threads", got=threads, expected="1 or more")
    chosen = _first(bundle) if backend == "auto" else backend
    if reasons := refusals(bundle, chosen):
        raise _refused(bundle, f"backend {chosen}", reasons)
    settings = Settings(threads=threads, low_memory=low_memory)
    return Engine(bundle, BACKENDS[chosen].of(bundle), settings)


def _first(bundle: Bundle) -> str:
    """The first backend of `AUTO` that nothing speaks against."""
    left_out = []
    for name in AUTO:
        reasons = refusals(bundle, name) or doubts(bundle, name)
        if not reasons:
            log.info("backend %s is used", name)
            return name
        left_out.append(f"{name}: {'; '.join(reasons)}")
        log.info("backend %s", left_out[-1])
    raise _refused(bundle, "backend auto", left_out)


def _refused(bundle: Bundle, backend: str, reasons: list[str]) -> BackendError:
    fix = f"`eri inspect {bundle.root}` says what can"
    return BackendError(
        backend, got="; ".join(reasons), expected="all it takes to run this bundle here", fix=fix
    )


def described(bundle: Bundle) -> Iterator[str]:
    """A line for each backend: how it would run the bundle here, or why it cannot."""
    for name, backend in BACKENDS.items():
        if reasons := refusals(bundle, name):
            yield f"backend {name}: no; {'; '.join(reasons)}"
            continue
        why = doubts(bundle, name)
        left_out = f" (not by auto: {'; '.join(why)})" if why else ""
        yield f"backend {name}: can run it here{left_out}; {backend.of(bundle).words(Settings())}"
