"""What a benchmark is to do: its subjects by name, and the work that all of them get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from eri_runtime import executors
from eri_runtime.bench.record import Kind, Limit, Workload
from eri_runtime.bench.worker import precision_of
from eri_runtime.errors import UsageError
from eri_runtime.spec import Bundle

OURS = "eri_runtime.bench.worker"
GROUP = "eri.bench.workers"
EAGER = "torch/eager"
CPU = "eri/cpu"
PEERS = "optimum-"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A subject before it is started: `module` is its worker's, or None where nobody has one."""

    name: str
    kind: Kind
    variant: str
    module: str | None
    precision: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run: `bundle` and `checkpoint` are paths, `timeout` seconds for one answer."""

    bundle: Path
    checkpoint: Path | None
    candidates: tuple[Candidate, ...]
    workload: Workload
    limits: Mapping[str, Limit]
    timeout: float
    command: str
    pictures: int  # pixels of a kept picture's longer side, 0 to keep none


def workers() -> Mapping[str, str]:
    """The modules of workers that other packages have, by kind; none of them is imported."""
    return {entry.name: entry.module for entry in entry_points(group=GROUP)}


def candidates(
    bundle: Bundle,
    backends: Sequence[str] | None,
    torch: Sequence[str],
    peers: Sequence[str],
) -> tuple[Candidate, ...]:
    """PyTorch's first, as the reference comes from there; then ours, then peers.

    Backends left out are all that can run the bundle here. Raises `UsageError` for a name twice.
    """
    known = workers()
    if backends is None:
        backends = [name for name in executors.BACKENDS if not executors.refusals(bundle, name)]
    found = (
        *(_theirs("torch", f"torch/{way}", way, known.get("torch")) for way in torch),
        *(_ours(bundle, name) for name in backends),
        *(
            _theirs("peer", name, name.removeprefix(PEERS), known.get(name.partition("-")[0]))
            for name in peers
        ),
    )
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("subjects", got=f"{', '.join(twice)} twice", expected="each once")
    if not found:
        raise UsageError(
            "subjects", got="none", expected="a backend that can run the bundle here, or --torch"
        )
    return found


def reference_of(found: Sequence[Candidate]) -> str:
    """PyTorch eager in float32; without it our CPU backend; without that the first subject."""
    names = [each.name for each in found]
    return next((name for name in (EAGER, CPU) if name in names), names[0])


def _ours(bundle: Bundle, backend: str) -> Candidate:
    precision = precision_of(bundle, backend)
    return Candidate(
        name=f"eri/{backend}", kind="eri", variant=backend, module=OURS, precision=precision
    )


def _theirs(kind: Kind, name: str, variant: str, module: str | None) -> Candidate:
    precision = "bf16" if "bf16" in variant else "fp32"
    return Candidate(name=name, kind=kind, variant=variant, module=module, precision=precision)
