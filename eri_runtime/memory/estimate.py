"""How many bytes a request takes: weights that are held, and what a run has beside them.

A component's `ComponentSpec.activations` are polynomials in the sizes of its inputs, and the
largest is what a run takes. Two factors in them are no sizes: `scores`, 1 where an engine keeps the
products of queries and keys of attention, and `copies`, 1 where it copies tensors around
convolutions and between the parts of a group normalisation. What an engine makes of that, and of
the weights, are the constants `COSTS`, as `benchmarks/memory_estimate.py` measured them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from eri_runtime.executors.base import Settings
from eri_runtime.memory.mode import Mode
from eri_runtime.memory.sizes import DENOISER, Stage, stages
from eri_runtime.spec import Bundle, ComponentSpec
from eri_runtime.tensors import read_header

SCORES, COPIES = "scores", "copies"
MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What an engine makes of a component, as multiples.

    Of the weights file: `private` memory, and `pages` of the file itself, which the system may take
    back. Of a run's activations: `run`, in which `scores` and `copies` are the factors of that
    name. `wide`: 16-bit weights and values are held in 32. Bytes beside them: `engine` once, for
    code and threads, and `each` for every component that is open.
    """

    private: float
    pages: float
    run: float = 1.0
    scores: float = 1.0
    copies: float = 1.0
    engine: int = 0
    each: int = 0
    wide: bool = True
    measured: bool = True


# ONNX Runtime: prepacked weights are copies; those that stay in their file are not prepacked, and
# their convolutions not blocked, and all parts of a streamed graph are opened so
CPU = Costs(private=1.17, pages=0.0, run=1.35, engine=25 * MB, each=MB)
CPU_MAPPED = replace(CPU, private=0.05, pages=1.0, run=1.1)
# a compiled model has weights of its own beside the pages it read them from
OPENVINO = Costs(private=1.25, pages=1.0, scores=0.0, copies=0.0, engine=80 * MB, each=6 * MB)
GPU = Costs(private=1.0, pages=0.0, scores=0.0, copies=0.0, wide=False, measured=False)
COSTS: Mapping[str, Costs] = {
    "cpu": CPU,
    "openvino": OPENVINO,
    "openvino:bf16": replace(OPENVINO, measured=False),
    "cuda": replace(GPU, scores=1.0),
    "tensorrt": GPU,
}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of a stage of a request: `weights` that are held, and a `run` beside them.

    `run` is None for a bundle that does not say what its graphs take.
    """

    component: str
    weights: int
    run: int | None

    @property
    def total(self) -> int | None:
        """Both together."""
        return None if self.run is None else self.weights + self.run


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a request takes, stage by stage, and the `peak`, in bytes, which is in stage `at`.

    `peak` is None where the bundle does not say; `measured` is whether the engine's constants were.
    """

    needs: tuple[Need, ...]
    peak: int | None
    at: str | None
    measured: bool


def activations(
    spec: ComponentSpec, sizes: Mapping[str, int], costs: Costs = CPU_MAPPED
) -> int | None:
    """Bytes of one run of a component at these sizes of its inputs, its weights left out.

    None for a bundle that does not say. Raises `KeyError` for a dimension without a size.
    """
    if not spec.activations:
        return None
    at = {**sizes, SCORES: costs.scores, COPIES: costs.copies, "1": 1}
    narrow = not costs.wide and spec.precision != "fp32"
    most = max(_value(polynomial, at) for polynomial in spec.activations)
    return math.ceil(most / (2 if narrow else 1))


def _value(polynomial: Mapping[str, float], at: Mapping[str, float]) -> float:
    return sum(
        value * math.prod(at[name] for name in monomial.split("*"))
        for monomial, value in polynomial.items()
    )


def costs_of(backend: str, settings: Settings, component: str = DENOISER) -> Costs:
    """The constants of an engine that is opened with these settings."""
    if backend != "cpu":
        return COSTS[backend]
    streamed = settings.streamed and component == DENOISER
    return CPU_MAPPED if streamed or settings.low_memory else CPU


def held(
    bundle: Bundle, name: str, backend: str, settings: Settings, overrides_bytes: int = 0
) -> int:
    """Bytes that an open component keeps: copies of its weights, pages of their file, overrides."""
    costs = costs_of(backend, settings, name)
    weights = _weights(bundle, name, settings)
    private = _private(bundle.components[name], weights, costs)
    return private + int(costs.pages * weights) + costs.each + overrides_bytes


def stage_need(
    bundle: Bundle,
    backend: str,
    settings: Settings,
    component: str,
    sizes: Mapping[str, int],
    *,
    is_open: bool = False,
) -> int | None:
    """Bytes that a run at these sizes takes beyond what is held; None where nobody knows.

    A component that is not open is opened for it. Pages of files are left out: the system finds
    room for them where it can.
    """
    costs, spec = costs_of(backend, settings, component), bundle.components[component]
    run = activations(spec, sizes, costs)
    if run is None:
        return None
    opened = 0 if is_open else _private(spec, _weights(bundle, component, settings), costs)
    return opened + int(costs.run * run)


def peak(
    bundle: Bundle,
    backend: str,
    settings: Settings,
    mode: Mode,
    height: int,
    width: int,
    images: int,
    *,
    conditions: int = 2,
    tokens: int | None = None,
    edited: bool = False,
) -> Estimate:
    """What a request for `images` pictures takes of an engine beyond the process itself.

    `conditions` are those of guidance, `tokens` the text's, as `max_sequence_length`; an `edited`
    picture is encoded first. The low memory and the streaming of `mode` and of `settings` are
    alike. Raises `SizeError` for a size that latents cannot have.
    """
    settings = replace(
        settings,
        low_memory=settings.low_memory or mode.low_memory,
        streamed=settings.streamed or mode.streamed,
    )
    planned = stages(bundle, mode, height, width, images, conditions, tokens, edited)
    needs = tuple(_need(bundle, backend, settings, stage) for stage in planned)
    totals = _course([need.total for need in needs], one_at_a_time=mode.offloaded)
    costs = costs_of(backend, settings)
    if totals is None:
        return Estimate(needs=needs, peak=None, at=None, measured=costs.measured)
    most = max(totals)
    at = needs[totals.index(most)].component
    return Estimate(needs=needs, peak=most + costs.engine, at=at, measured=costs.measured)


def _need(bundle: Bundle, backend: str, settings: Settings, stage: Stage) -> Need:
    costs = costs_of(backend, settings, stage.component)
    run = activations(bundle.components[stage.component], stage.sizes, costs)
    return Need(
        component=stage.component,
        weights=held(bundle, stage.component, backend, settings),
        run=None if run is None else int(costs.run * run) + stage.beside,
    )


def _course(totals: list[int | None], *, one_at_a_time: bool) -> list[int] | None:
    """What is held while each stage runs; what is open keeps the memory of its runs."""
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return None
    return known if one_at_a_time else [sum(known[: i + 1]) for i in range(len(known))]


def _private(spec: ComponentSpec, weights: int, costs: Costs) -> int:
    widened = 2 if costs.wide and spec.precision != "fp32" else 1
    return int(costs.private * widened * weights)


def _weights(bundle: Bundle, name: str, settings: Settings) -> int:
    """Bytes of a component's weights file that are in memory at once."""
    spec = bundle.components[name]
    if not (settings.streamed and name == DENOISER and spec.segments):
        return bundle.files[spec.weights].size
    entries = read_header(bundle.path(spec.weights)).entries
    return max(
        sum(entries[weight].end - entries[weight].begin for weight in segment.weights)
        for segment in spec.segments
    )
