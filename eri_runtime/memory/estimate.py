"""Predicts how many bytes a request takes: the weights in memory plus the activations of a run.

The polynomials in `ComponentSpec.activations` take the sizes of a component's inputs. The largest
value is what one run allocates. Two of their variables are not sizes: `scores` is 1 if the engine
stores the products of queries and keys of attention, and `copies` is 1 if it copies tensors around
convolutions and between the parts of a group normalization. `COSTS` holds the factors by which an
engine multiplies activations and weights, measured by `benchmarks/memory_estimate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from eri_runtime.bundle import COPIES, DENOISER, SCORES, Bundle, ComponentSpec, read_header
from eri_runtime.executors import BACKENDS, Settings
from eri_runtime.memory.modes import Mode
from eri_runtime.memory.stages import Stage, stages

MB = 10**6


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What an engine adds to a component's weights and activations.

    Attributes:
        private: Private memory, as a multiple of the weights file.
        pages: Pages of the file itself, which the system may reclaim, as a multiple of the file.
        run: Memory of a run, as a multiple of the activations.
        scores: Value of the variable `scores` in the polynomials.
        copies: Value of the variable `copies` in the polynomials.
        engine: Bytes for the engine's code and threads, once.
        each: Bytes for every open component.
        wide: Whether 16-bit weights and values are held in 32 bits.
        measured: Whether the other fields were measured.
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


# ONNX Runtime: prepacked weights are copies. Mapped weights are not prepacked, and their
# convolutions not blocked. All segments of a streamed graph are opened mapped.
CPU = Costs(private=1.17, pages=0.0, run=1.35, engine=25 * MB, each=MB)
CPU_MAPPED = replace(CPU, private=0.05, pages=1.0, run=1.1)
# a compiled model has its own weights in addition to the pages they were read from
OPENVINO = Costs(private=1.25, pages=1.0, scores=0.0, copies=0.0, engine=80 * MB, each=6 * MB)
GPU = Costs(private=1.0, pages=0.0, scores=0.0, copies=0.0, wide=False, measured=False)
COSTS: Mapping[str, Costs] = {
    "cpu": CPU,
    "openvino": OPENVINO,
    "openvino:bf16": replace(OPENVINO, measured=False),
    "cuda": replace(GPU, scores=1.0),
    "cuda:tf32": replace(GPU, scores=1.0),
    "tensorrt": GPU,
}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes of one stage of a request.

    Attributes:
        component: The component that runs.
        weights: Bytes it keeps while open.
        run: Bytes of a run in addition, or None if the bundle does not record activations.
    """

    component: str
    weights: int
    run: int | None

    @property
    def total(self) -> int | None:
        """Weights and run together, or None if the run is unknown."""
        return None if self.run is None else self.weights + self.run


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory of a request, stage by stage.

    Attributes:
        needs: Bytes of each stage, in order.
        peak: Bytes at the peak, or None if the bundle does not record activations.
        at: The component that runs at the peak.
        measured: Whether the engine's constants were measured.
    """

    needs: tuple[Need, ...]
    peak: int | None
    at: str | None
    measured: bool


def activations(
    spec: ComponentSpec, sizes: Mapping[str, int], costs: Costs = CPU_MAPPED
) -> int | None:
    """Returns the bytes of one run of a component at these input sizes, without its weights.

    Returns None if the bundle does not record activations. Raises `KeyError` for a dimension that
    `sizes` lacks.
    """
    if not spec.activations:
        return None
    variables = {**sizes, SCORES: costs.scores, COPIES: costs.copies, "1": 1}
    narrow = not costs.wide and spec.precision != "fp32"
    most = max(_evaluate(polynomial, variables) for polynomial in spec.activations)
    return math.ceil(most / (2 if narrow else 1))


def _evaluate(polynomial: Mapping[str, float], variables: Mapping[str, float]) -> float:
    """Evaluates a polynomial given as coefficients by monomial, such as `batch*height`."""
    return sum(
        coefficient * math.prod(variables[name] for name in monomial.split("*"))
        for monomial, coefficient in polynomial.items()
    )


def costs_of(bundle: Bundle, backend: str, settings: Settings, component: str = DENOISER) -> Costs:
    """Returns the constants of a component that an engine opens with these settings.

    The form of a graph for ONNX Runtime's CPU stores no scores; segments have no such form.
    """
    if backend != "cpu":
        return COSTS[backend]
    streamed = settings.streamed and component == DENOISER
    costs = CPU_MAPPED if streamed or settings.low_memory else CPU
    graph = bundle.components[component].graph
    has_form = BACKENDS[backend].graph_file(graph, bundle.files) != graph
    return replace(costs, scores=0.0) if has_form and not streamed else costs


def resident_bytes(
    bundle: Bundle, name: str, backend: str, settings: Settings, overrides_bytes: int = 0
) -> int:
    """Returns the bytes an open component keeps: copies of weights, file pages and overrides."""
    costs = costs_of(bundle, backend, settings, name)
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
    """Returns the bytes that a run takes in addition to what is in memory, or None if unknown.

    Includes opening the component unless it `is_open`. Leaves out file pages, which the system can
    reclaim.
    """
    costs, spec = costs_of(bundle, backend, settings, component), bundle.components[component]
    run = activations(spec, sizes, costs)
    if run is None:
        return None
    opened = 0 if is_open else _private(spec, _weights(bundle, component, settings), costs)
    return opened + int(costs.run * run)


def estimate_peak(
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
    """Estimates the peak memory of a request, in addition to the Python process itself.

    Args:
        bundle: The bundle to run.
        backend: A name in `executors.BACKENDS`.
        settings: Options the engine is opened with.
        mode: How the request runs. `low_memory` and `streamed` apply if set here or in `settings`.
        height: Height of an image in pixels.
        width: Width of an image in pixels.
        images: Number of images.
        conditions: Conditions per image: 2 with classifier-free guidance, 1 without.
        tokens: Length of the text, as `max_sequence_length`. Default: the bundle's.
        edited: Whether the request encodes an image first.

    Returns:
        The bytes of each stage and the peak.

    Raises:
        SizeError: If latents cannot have this size.

    Example:
        >>> from eri_runtime.executors import Settings
        >>> from eri_runtime.memory import Mode, estimate_peak
        >>> settings = Settings()
        >>> whole = estimate_peak(pipe.bundle, "cpu", settings, Mode(), 64, 64, 2)
        >>> halved = estimate_peak(pipe.bundle, "cpu", settings, Mode(rows=2), 64, 64, 2)
        >>> halved.peak <= whole.peak
        True
    """
    settings = replace(
        settings,
        low_memory=settings.low_memory or mode.low_memory,
        streamed=settings.streamed or mode.streamed,
    )
    planned = stages(bundle, mode, height, width, images, conditions, tokens, edited)
    needs = tuple(_need(bundle, backend, settings, stage) for stage in planned)
    totals = _cumulated([need.total for need in needs], one_at_a_time=mode.offloaded)
    costs = costs_of(bundle, backend, settings)
    if totals is None:
        return Estimate(needs=needs, peak=None, at=None, measured=costs.measured)
    most = max(totals)
    at = needs[totals.index(most)].component
    return Estimate(needs=needs, peak=most + costs.engine, at=at, measured=costs.measured)


def _need(bundle: Bundle, backend: str, settings: Settings, stage: Stage) -> Need:
    costs = costs_of(bundle, backend, settings, stage.component)
    run = activations(bundle.components[stage.component], stage.sizes, costs)
    return Need(
        component=stage.component,
        weights=resident_bytes(bundle, stage.component, backend, settings),
        run=None if run is None else int(costs.run * run) + stage.extra_bytes,
    )


def _cumulated(totals: list[int | None], *, one_at_a_time: bool) -> list[int] | None:
    """Returns the bytes in memory while each stage runs, or None if any of them is unknown.

    Components that stay open keep the memory of their runs.
    """
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return None
    return known if one_at_a_time else [sum(known[: i + 1]) for i in range(len(known))]


def _private(spec: ComponentSpec, weights: int, costs: Costs) -> int:
    """Returns the private memory of a component with this many bytes of weights."""
    widened = 2 if costs.wide and spec.precision != "fp32" else 1
    return int(costs.private * widened * weights)


def _weights(bundle: Bundle, name: str, settings: Settings) -> int:
    """Returns the bytes of a component's weights file that are in memory at a time."""
    spec = bundle.components[name]
    if not (settings.streamed and name == DENOISER and spec.segments):
        return bundle.files[spec.weights].size
    entries = read_header(bundle.pinned_path(spec.weights)).entries
    return max(
        sum(entries[weight].end - entries[weight].begin for weight in segment.weights)
        for segment in spec.segments
    )
