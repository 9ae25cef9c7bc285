"""The engines, and which of them can run a bundle here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eri_runtime.errors import BackendError, UnknownNameError, UsageError
from eri_runtime.executors.base import Backend, Executor, Settings
from eri_runtime.executors.ort import CPU, CUDA
from eri_runtime.executors.stepper import Stepper
from eri_runtime.spec import Bundle

BACKENDS: dict[str, Backend] = {"cuda": CUDA, "cpu": CPU}  # the first that can run it is `auto`


def refusals(bundle: Bundle, backend: str) -> list[str]:
    """Why `backend` cannot run this bundle here, a line for each component; empty if it can."""
    refusal = BACKENDS[backend].refusal
    reasons = ((name, refusal(spec)) for name, spec in bundle.components.items())
    return [f"{name}: {reason}" for name, reason in reasons if reason]


@dataclass(frozen=True)
class Engine:
    """What opens a bundle's components by name, on one backend."""

    bundle: Bundle
    backend: Backend
    settings: Settings

    def __call__(self, name: str) -> Executor:
        """Open a component."""
        spec = self.bundle.components[name]
        return self.backend.executor(self.bundle.path(spec.graph), spec, self.settings)

    def stepper(self) -> Stepper | None:
        """Open the step graph, if the bundle has one."""
        spec = self.bundle.components["denoiser"]
        if spec.step is None:
            return None
        return self.backend.stepper(self.bundle.path(spec.step), spec, self.settings)


def choose(
    bundle: Bundle, backend: str = "auto", *, threads: int | None = None, low_memory: bool = False
) -> Engine:
    """What opens a component by name, on the named backend or the first that can.

    Raises `UnknownNameError` for a name that is none, `BackendError` where it cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        expected = f"auto or one of {', '.join(BACKENDS)}"
        raise UnknownNameError("backend", got=repr(backend), expected=expected)
    if threads is not None and threads < 1:
        raise UsageError("threads", got=threads, expected="1 or more")
    names = list(BACKENDS) if backend == "auto" else [backend]
    chosen = next((name for name in names if not refusals(bundle, name)), names[-1])
    if reasons := refusals(bundle, chosen):
        raise BackendError(f"backend {chosen}", got=reasons[0], expected="a bundle it can run")
    return Engine(bundle, BACKENDS[chosen], Settings(threads=threads, low_memory=low_memory))


def described(bundle: Bundle) -> Iterator[str]:
    """A line for each backend: how it would run the bundle here, or why it cannot."""
    for name, backend in BACKENDS.items():
        reasons = refusals(bundle, name)
        how = f"no; {reasons[0]}" if reasons else f"can run it here; {backend.words(Settings())}"
        yield f"backend {name}: {how}"
