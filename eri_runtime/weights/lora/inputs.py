"""LoRAs as inputs of the denoiser instead of merged weights; each image may have its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import DENOISER, LORA_A, LORA_B, Bundle, ComponentSpec, LoraSpec
from eri_runtime.errors import LoraError, UnknownNameError, UsageError, short

if TYPE_CHECKING:
    from eri_runtime.weights.lora import Adapters

Array = NDArray[np.float32]
Inputs = Mapping[str, Array]
Scales = Mapping[str, float]
Loaded = Mapping[str, "Adapters"]
Scaled = tuple[str, float, "Adapters"]  # a LoRA's name, scale and changes
PerImage = Sequence[Sequence[Scaled]]  # the LoRAs of each image
Factors = tuple[Array, Array]  # A (in, rank) and B (rank, out)
AllFactors = Mapping[str, Mapping[str, list[Factors]]]  # by LoRA and weight

MERGE = "merge it into the weights with `pipe.load_lora`"


@dataclass(frozen=True, eq=False)
class Products:
    """The LoRA inputs of a denoiser, by name.

    Attributes:
        shared: Inputs that all rows share, A (1, in, rank) and B (1, rank, out) float32.
        rows: Inputs with one row per image, A (B, in, rank) and B (B, rank, out) float32.
    """

    shared: Inputs = field(default_factory=dict)
    rows: Inputs = field(default_factory=dict)


class LoraInputs:
    """Builds the LoRA inputs of one denoiser.

    The last inputs are kept, so a second call with the same LoRAs copies nothing.

    Args:
        spec: The denoiser's specification.
    """

    def __init__(self, spec: ComponentSpec) -> None:
        self._lora = spec.lora
        self._last: tuple[PerImage, Products] | None = None

    def products(self, loras: Sequence[Scales], loaded: Loaded) -> Products:
        """Returns the inputs for a batch of images.

        Args:
            loras: The LoRAs of each image, scales by name.
            loaded: The loaded LoRAs by name.

        Returns:
            The inputs: zeros for an image without LoRAs, and none at all if the denoiser has no
            LoRA inputs.

        Raises:
            UnknownNameError: If a LoRA is not loaded.
            UsageError: If the ranks of an image's LoRAs add up to more than the graph accepts.
            LoraError: If a LoRA does more than add low-rank products to the denoiser's linear
                layers.
        """
        for name in chain.from_iterable(loras):
            if name not in loaded:
                expected = ", ".join(loaded) or "one that `load_lora` has loaded"
                raise UnknownNameError("loras", got=short(name), expected=expected)
        if self._lora is None:
            return Products()
        requested = [
            [(name, scale, loaded[name]) for name, scale in image.items() if scale]
            for image in loras
        ]
        if self._last is None or self._last[0] != requested:
            self._last = requested, _build_inputs(self._lora, requested)
        return self._last[1]


def _build_inputs(lora: LoraSpec, requested: PerImage) -> Products:
    """Builds shared inputs if the graph has them and all images have the same LoRAs, else rows."""
    share = lora.shared and all(image == requested[0] for image in requested)
    images = requested[:1] if share else requested
    factors = {
        name: _factors(name, changes, lora) for image in images for name, _, changes in image
    }
    rank = max(lora.least, *(_total_rank(lora, image, factors) for image in images))
    arrays = _zeros(lora, len(images), rank)
    for row, image in enumerate(images):
        _write(arrays, row, image, factors)
    return Products(shared=arrays) if share else Products(rows=arrays)


def check_loras(
    bundle: Bundle, loras: Any, count: int, prompts: int
) -> tuple[Mapping[str, float], ...]:
    """Checks a request's `loras` and returns scales by name for each image.

    Args:
        bundle: The bundle.
        loras: Scales by LoRA, one mapping for all images, or a list of one per prompt or image.
            None stands for no LoRAs.
        count: Number of images.
        prompts: Number of prompts.

    Returns:
        One mapping per image.

    Raises:
        UsageError: If `loras` is anything else, or the denoiser has no LoRA inputs.
    """
    if loras is None:
        return ({},) * count
    if bundle.components["denoiser"].lora is None:
        raise UsageError(
            "loras",
            got="a bundle whose denoiser takes none",
            expected="one that was exported with `--lora-rank`",
            fix="merge them into the weights with `pipe.load_lora`",
        )
    images = [loras] * count if isinstance(loras, Mapping) else _per_image(loras, count, prompts)
    return tuple({} if image is None else _check_scales(image) for image in images)


def _per_image(loras: Any, count: int, prompts: int) -> list[Any]:
    """Repeats a list with one element per prompt or image, so that it has one per image."""
    is_list = isinstance(loras, Sequence) and not isinstance(loras, str)
    if not is_list or len(loras) not in (count, prompts):
        got = f"{len(loras)} of them" if is_list else short(loras)
        expected = f"a mapping of names to scales, or {' or '.join(map(str, {prompts, count}))}"
        raise UsageError("loras", got=got, expected=expected)
    return [each for each in loras for _ in range(count // len(loras))]


def _check_scales(scales: Any) -> dict[str, float]:
    """Returns a copy of a mapping of names to finite scales; raises `UsageError` for others."""
    has_names = isinstance(scales, Mapping) and all(isinstance(name, str) for name in scales)
    if not has_names or not all(_is_finite(scale) for scale in scales.values()):
        expected = "a mapping of LoRAs' names to finite scales"
        raise UsageError("loras", got=short(scales), expected=expected)
    return {name: float(scale) for name, scale in scales.items()}


def _is_finite(value: Any) -> bool:
    """Returns whether a value is a finite real number, and not a bool."""
    real = isinstance(value, int | float | np.integer | np.floating)
    return real and not isinstance(value, bool) and bool(np.isfinite(value))


def zero_lora_inputs(lora: LoraSpec, rows: int) -> dict[str, Array]:
    """Returns the inputs of a graph that runs without LoRAs: zeros of the least rank.

    `rows` is the number of rows, unless the graph shares its LoRA inputs.
    """
    return _zeros(lora, 1 if lora.shared else rows, lora.least)


def _zeros(lora: LoraSpec, count: int, rank: int) -> dict[str, Array]:
    """Returns zeros for every input, A (count, in, rank) and B (count, rank, out)."""
    arrays = {}
    for name, (out, width) in lora.targets.items():
        arrays[LORA_A + name] = np.zeros((count, width, rank), np.float32)
        arrays[LORA_B + name] = np.zeros((count, rank, out), np.float32)
    return arrays


def _factors(lora_name: str, adapters: Adapters, lora: LoraSpec) -> dict[str, list[Factors]]:
    """Returns A (in, rank) and B (rank, out) of every change, by weight.

    Raises `LoraError` for a change that is not a low-rank product, or has no inputs.
    """
    factors: dict[str, list[Factors]] = {}
    for component, weights in adapters.items():
        for weight, changes in weights.items():
            is_target = component == DENOISER and weight in lora.targets
            for product in [change.low_rank if is_target else None for change in changes]:
                if product is None:
                    raise LoraError(
                        f"LoRA {lora_name}",
                        got=f"a change of {component}: {weight} that the graph has no inputs for",
                        expected="low-rank products for linear layers of the denoiser only",
                        fix=MERGE,
                    )
                down, up = product
                factors.setdefault(weight, []).append((down.T, up.T))
    return factors


def _total_rank(lora: LoraSpec, image: Sequence[Scaled], factors: AllFactors) -> int:
    """Returns the largest sum of ranks of an image's LoRAs for any weight.

    Raises `UsageError` if it is more than the graph accepts.
    """
    ranks = Counter[str]()
    for name, _, _ in image:
        for weight, products in factors[name].items():
            ranks[weight] += sum(a.shape[1] for a, _ in products)
    rank = max(ranks.values(), default=0)
    if rank > lora.rank:
        raise UsageError(
            f"loras {', '.join(name for name, _, _ in image)}",
            got=f"a rank of {rank} in all",
            expected=f"at most {lora.rank} an image",
            fix=f"{MERGE}, or export again with `--lora-rank {rank}`",
        )
    return rank


def _write(arrays: Inputs, row: int, image: Sequence[Scaled], factors: AllFactors) -> None:
    """Writes the factors of an image's LoRAs into its row, side by side along the rank."""
    used = Counter[str]()  # columns of each weight that are written
    for name, scale, _ in image:
        for weight, products in factors[name].items():
            for a, b in products:
                start, end = used[weight], used[weight] + a.shape[1]
                used[weight] = end
                arrays[LORA_A + weight][row, :, start:end] = a
                np.multiply(b, np.float32(scale), out=arrays[LORA_B + weight][row, start:end])
