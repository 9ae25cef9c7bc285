"""LoRAs as inputs of the denoiser, one set for each image; no weight is written for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from eri_runtime.denoise import Array
from eri_runtime.errors import LoraError, UnknownNameError, UsageError, short
from eri_runtime.guided import Guided, Inputs
from eri_runtime.spec import LORA_A, LORA_B, Bundle, ComponentSpec, LoraSpec

if TYPE_CHECKING:
    from eri_runtime.lora import Adapters

Scales = Mapping[str, float]
Loaded = Mapping[str, "Adapters"]
Scaled = tuple[str, float, "Adapters"]  # a LoRA's name, scale and changes
Asked = Sequence[Sequence[Scaled]]  # for each image
Factors = tuple[Array, Array]  # A (in, rank) and B (rank, out)
AllFactors = Mapping[str, Mapping[str, list[Factors]]]  # by LoRA and weight

DENOISER = "denoiser"
MERGE = "merge it into the weights with `pipe.load_lora`"


@dataclass(frozen=True, eq=False)
class Products:
    """The inputs of a denoiser that takes LoRAs: `shared` by all rows, or of (B, …) `rows`."""

    shared: Inputs = field(default_factory=dict)
    rows: Inputs = field(default_factory=dict)


class LoraInputs:
    """The inputs that LoRAs make of one denoiser.

    What was made last is kept, so a call with the same LoRAs copies nothing.
    """

    def __init__(self, spec: ComponentSpec) -> None:
        self._lora = spec.lora
        self._made: tuple[Asked, Products] | None = None

    def beside(
        self, loras: Sequence[Scales], loaded: Loaded, guided: Guided, shared: Inputs
    ) -> tuple[Guided, Inputs]:
        """A request's conditions and shared inputs, and beside them those of its images' LoRAs."""
        products = self.products(loras, loaded)
        return guided.beside(products.rows), {**shared, **products.shared}

    def products(self, loras: Sequence[Scales], loaded: Loaded) -> Products:
        """The inputs for images that have each these LoRAs of those `loaded`; zeros for none.

        Raises `UnknownNameError` for a LoRA that is not loaded, `UsageError` where the ranks of an
        image's LoRAs add up to more than the graph takes, and `LoraError` for a LoRA that does more
        than add a low-rank product to linear layers of the denoiser.
        """
        for name in chain.from_iterable(loras):
            if name not in loaded:
                expected = ", ".join(loaded) or "one that `load_lora` has loaded"
                raise UnknownNameError("loras", got=repr(name), expected=expected)
        if self._lora is None:
            return Products()
        asked = [
            [(name, scale, loaded[name]) for name, scale in image.items() if scale]
            for image in loras
        ]
        if self._made is None or self._made[0] != asked:
            self._made = asked, _products(self._lora, asked)
        return self._made[1]


def _products(lora: LoraSpec, asked: Asked) -> Products:
    """One set of inputs where the graph shares it and all images are alike; else one an image."""
    alike = all(each == asked[0] for each in asked)
    images = asked[:1] if alike and lora.shared else asked
    factors = {name: _factors(name, changes, lora) for each in images for name, _, changes in each}
    rank = max(lora.least, *(_rank(lora, image, factors) for image in images))
    arrays = _empty(lora, len(images), rank)
    for row, image in enumerate(images):
        _write(arrays, row, image, factors)
    return Products(shared=arrays) if alike and lora.shared else Products(rows=arrays)


def check_loras(
    bundle: Bundle, asked: Any, count: int, prompts: int
) -> tuple[Mapping[str, float], ...]:
    """Scales by name for each image, given for all, for each prompt or for each image.

    Raises `UsageError` for anything else, and for a bundle that takes none.
    """
    if asked is None:
        return ({},) * count
    if bundle.components["denoiser"].lora is None:
        raise UsageError(
            "loras",
            got="a bundle whose denoiser takes none",
            expected="one that was exported with `--lora-rank`",
            fix="merge them into the weights with `pipe.load_lora`",
        )
    each = [asked] * count if isinstance(asked, Mapping) else _each_image(asked, count, prompts)
    return tuple({} if one is None else _scales(one) for one in each)


def _each_image(asked: Any, count: int, prompts: int) -> list[Any]:
    listed = isinstance(asked, Sequence) and not isinstance(asked, str)
    if not listed or len(asked) not in (count, prompts):
        got = f"{len(asked)} of them" if listed else short(asked)
        expected = f"a mapping of names to scales, or {' or '.join(map(str, {prompts, count}))}"
        raise UsageError("loras", got=got, expected=expected)
    return [one for one in asked for _ in range(count // len(asked))]


def _scales(one: Any) -> dict[str, float]:
    named = isinstance(one, Mapping) and all(isinstance(name, str) for name in one)
    if not named or not all(_is_number(scale) for scale in one.values()):
        expected = "a mapping of LoRAs' names to finite scales"
        raise UsageError("loras", got=short(one), expected=expected)
    return {name: float(scale) for name, scale in one.items()}


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float | np.integer | np.floating)
    return real and not isinstance(value, bool) and bool(np.isfinite(value))


def zeros(lora: LoraSpec, rows: int) -> dict[str, Array]:
    """The inputs of a graph that is given no LoRA, of the least rank it takes."""
    return _empty(lora, 1 if lora.shared else rows, lora.least)


def _empty(lora: LoraSpec, count: int, rank: int) -> dict[str, Array]:
    arrays = {}
    for name, (out, width) in lora.targets.items():
        arrays[LORA_A + name] = np.zeros((count, width, rank), np.float32)
        arrays[LORA_B + name] = np.zeros((count, rank, out), np.float32)
    return arrays


def _factors(lora_name: str, adapters: Adapters, lora: LoraSpec) -> dict[str, list[Factors]]:
    """A and B of every change of every weight; `LoraError` for a change that has none."""
    found: dict[str, list[Factors]] = {}
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
                found.setdefault(weight, []).append((down.T, up.T))
    return found


def _rank(lora: LoraSpec, image: Sequence[Scaled], factors: AllFactors) -> int:
    """The most columns that an image's LoRAs take of any weight; `UsageError` for too many."""
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
    """Put an image's products into its row, one beside the other."""
    filled = Counter[str]()
    for name, scale, _ in image:
        for weight, products in factors[name].items():
            for a, b in products:
                first, last = filled[weight], filled[weight] + a.shape[1]
                filled[weight] = last
                arrays[LORA_A + weight][row, :, first:last] = a
                np.multiply(b, np.float32(scale), out=arrays[LORA_B + weight][row, first:last])
