"""The plan of a benchmark: which subjects run, and the work that all of them get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from eri_runtime import executors
from eri_runtime.bench.eri_worker import STEP_CACHE, precision_of
from eri_runtime.bench.peers import check_peer
from eri_runtime.bench.record import Kind, Limit, Workload
from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.errors import UsageError
from eri_runtime.request import FIRST_BLOCK, check_step_cache

OURS = "eri_runtime.bench.eri_worker"
GROUP = "eri.bench.workers"
EAGER = "torch/eager"
CPU = "eri/cpu"
PEERS = "optimum"  # one worker runs all of them, as Optimum converts the checkpoint for each


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A subject that is to be measured, before its process starts.

    Attributes:
        name: `eri/BACKEND`, `torch/WAY` or the name of a peer.
        kind: As in `Subject`.
        variant: The backend, or the way to run PyTorch, for the worker.
        module: Module of its worker; None if no installed package has one.
        precision: Precision that it is expected to compute in.
        python: The Python that runs its worker; None: this one.
        uncached: The subject that does the same without step caching, whose pictures its own are
            compared with; None: it caches no steps.
    """

    name: str
    kind: Kind
    variant: str
    module: str | None
    precision: str = "fp32"
    python: str | None = None
    uncached: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a benchmark run does.

    Attributes:
        bundle: Folder of the bundle.
        checkpoint: Folder of the checkpoint that PyTorch runs; None without PyTorch.
        candidates: The subjects, in the order of the rows.
        workload: The work that every subject gets.
        limits: The limit on image differences for each precision.
        timeout: Seconds that a subject may take for one answer.
        command: The command line that repeats the run.
        pictures: Longer side of the images kept in the record, in pixels; 0 keeps none.
    """

    bundle: Path
    checkpoint: Path | None
    candidates: tuple[Candidate, ...]
    workload: Workload
    limits: Mapping[str, Limit]
    timeout: float
    command: str
    pictures: int


def workers() -> Mapping[str, str]:
    """Returns the worker modules of other packages by kind, without importing them."""
    return {entry.name: entry.module for entry in entry_points(group=GROUP)}


def candidates(
    bundle: Bundle,
    backends: Sequence[str] | None,
    torch: Sequence[str],
    peers: Sequence[str],
    python: str | None = None,
    thresholds: Sequence[float] = (),
) -> tuple[Candidate, ...]:
    """Returns the subjects of a run: PyTorch's first, as the reference, then ours, then peers.

    Args:
        bundle: The bundle to measure.
        backends: Names of backends; None selects all that can run the bundle on this machine.
        torch: Ways to run PyTorch, such as `eager` or `compile+bf16`.
        peers: Other engines, such as `optimum-onnx`.
        python: The Python that runs the peers; None: this one.
        thresholds: Thresholds of step caching, each with a subject beside each backend.

    Raises:
        UnknownNameError: If there is no such peer.
        UsageError: If a subject is named twice, or there is none, or cannot cache steps.
    """
    known = workers()
    if backends is None:
        backends = [name for name in executors.BACKENDS if not executors.refusals(bundle, name)]
    selected = (
        *(_other("torch", f"torch/{way}", way, known.get("torch")) for way in torch),
        *(_ours(bundle, name) for name in backends),
        *(_cached(bundle, name, each) for name in backends for each in thresholds),
        *(
            replace(_other("peer", check_peer(name), name, known.get(PEERS)), python=python)
            for name in peers
        ),
    )
    names = [each.name for each in selected]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("subjects", got=f"{', '.join(twice)} twice", expected="each once")
    if not selected:
        raise UsageError(
            "subjects", got="none", expected="a backend that can run the bundle here, or --torch"
        )
    return selected


def reference_of(selected: Sequence[Candidate]) -> str:
    """Returns the name of the reference: eager PyTorch, else our CPU backend, else the first."""
    names = [each.name for each in selected]
    return next((name for name in (EAGER, CPU) if name in names), names[0])


def _ours(bundle: Bundle, backend: str) -> Candidate:
    """Returns one of our backends as a candidate."""
    precision = precision_of(bundle, backend)
    return Candidate(
        name=f"eri/{backend}", kind="eri", variant=backend, module=OURS, precision=precision
    )


def _cached(bundle: Bundle, backend: str, threshold: float) -> Candidate:
    """Returns one of our backends with step caching; raises `UsageError` if it has none."""
    check_step_cache(bundle, {"step_cache": FIRST_BLOCK, "step_cache_threshold": threshold})
    spec = bundle.components[DENOISER]
    if reason := executors.BACKENDS[backend].of(bundle).step_cache_refusal(spec):
        fix = "name others with --backends"
        raise UsageError(
            "--step-cache", got=f"{backend}: {reason}", expected="engines that can", fix=fix
        )
    ours = _ours(bundle, backend)
    variant = f"{backend}{STEP_CACHE}{threshold:g}"
    return replace(ours, name=f"eri/{variant}", kind="cached", variant=variant, uncached=ours.name)


def _other(kind: Kind, name: str, variant: str, module: str | None) -> Candidate:
    """Returns PyTorch or a peer as a candidate."""
    precision = "bf16" if "bf16" in variant else "fp32"
    return Candidate(name=name, kind=kind, variant=variant, module=module, precision=precision)
