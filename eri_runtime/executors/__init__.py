"""The engines, and which of them can run a bundle here."""

from __future__ import annotations

from collections.abc import Callable

from eri_runtime.errors import BackendError, UnknownNameError, UsageError
from eri_runtime.executors import ort
from eri_runtime.executors.base import Executor
from eri_runtime.spec import Bundle

OpenComponent = Callable[[str], Executor]
BACKENDS = {"cpu": ort}


def refusals(bundle: Bundle, backend: str) -> list[str]:
    """Why `backend` cannot run this bundle here, a line for each component; empty if it can."""
    refusal = BACKENDS[backend].refusal
    reasons = ((name, refusal(spec)) for name, spec in bundle.components.items())
    return [f"{name}: {reason}" for name, reason in reasons if reason]


def choose(bundle: Bundle, backend: str = "auto", *, threads: int | None = None) -> OpenComponent:
    """What opens a component by name, on the named backend or the first that can.

    Raises `UnknownNameError` for a name that is none, `BackendError` where it cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        expected = f"auto or one of {', '.join(BACKENDS)}"
        raise UnknownNameError("backend", got=repr(backend), expected=expected)
    if threads is not None and threads < 1:
        raise UsageError("threads", got=threads, expected="1 or more")
    chosen = next(iter(BACKENDS)) if backend == "auto" else backend
    if reasons := refusals(bundle, chosen):
        raise BackendError(f"backend {chosen}", got=reasons[0], expected="a bundle it can run")

    def open_component(name: str) -> Executor:
        spec = bundle.components[name]
        return ort.OrtExecutor(bundle.path(spec.graph), spec, threads=threads)

    return open_component
