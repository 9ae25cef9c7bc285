"""LoRAs as inputs of the denoiser, one set for each image; no weight is written for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import LoraError, UnknownNameError, UsageError, short
from eri_runtime.spec import LORA_A, LORA_B, Bundle, ComponentSpec, LoraSpec

if TYPE_CHECKING:
    from eri_runtime.lora import Adapters

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]
Scales = Mapping[str, float]
Factors = tuple[Array, Array]  # A (in, rank) and B (rank, out)

DENOISER = "denoiser"
MERGE = "merge it into the weights with `pipe.load_lora`"


@dataclass(frozen=True, eq=False)
class Products:
    """The inputs of a denoiser that takes LoRAs: `shared` by all rows, or of (B, …) `rows`."""

    shared: Arrays = field(default_factory=dict)
    rows: Arrays = field(default_factory=dict)


class LoraInputs:
    """The LoRAs a pipeline knows by name, and the inputs of one denoiser that they make.

    What was made last is kept, so a call with the same LoRAs copies nothing.
    """

    def __init__(self, spec: ComponentSpec) -> None:
        self._lora = spec.lora
        self._known: dict[str, Adapters] = {}
        self._made: tuple[Sequence[Scales], Products] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The LoRAs that a call may name."""
        return tuple(self._known)

    def add(self, name: str, adapters: Adapters) -> None:
        """Know what `lora.adapters` made of a file as `name`; checked when a call asks for it."""
        self._known[name], self._made = adapters, None

    def remove(self, name: str) -> None:
        """Forget a LoRA; raises `UnknownNameError` for none."""
        self._check_known([name])
        del self._known[name]
        self._made = None

    def products(self, images: Sequence[Scales]) -> Products:
        """The inputs for images with these LoRAs, by name and scale; without any, zeros.

        Raises `UnknownNameError` for a LoRA that is not known, `UsageError` where the ranks of an
        image's LoRAs add up to more than the graph takes, and `LoraError` for a LoRA that does more
        than add a low-rank product to linear layers of the denoiser.
        """
        asked = [{name: each for name, each in scales.items() if each} for scales in images]
        self._check_known(chain.from_iterable(images))
        if self._lora is None:
            return Products()
        if self._made is None or self._made[0] != asked:
            self._made = asked, self._products(self._lora, asked)
        return self._made[1]

    def _products(self, lora: LoraSpec, asked: Sequence[Scales]) -> Products:
        different = asked if any(each != asked[0] for each in asked[1:]) else asked[:1]
        names = dict.fromkeys(chain.from_iterable(different))
        known = {name: _factors(name, self._known[name], lora) for name in names}
        rank = max(lora.least, *(_rank(lora, scales, known) for scales in different))
        count = len(different)
        if count == 1 and not lora.shared:
            different, count = [*different] * len(asked), len(asked)
        arrays = _empty(lora, count, rank)
        for row, scales in enumerate(different):
            _write(arrays, row, scales, known)
        return Products(shared=arrays) if count == 1 and lora.shared else Products(rows=arrays)

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._known:
                expected = ", ".join(self._known) or "a LoRA that was loaded; there is none"
                raise UnknownNameError("loras", got=repr(name), expected=expected)


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


def _factors(name: str, adapters: Adapters, lora: LoraSpec) -> dict[str, list[Factors]]:
    """A and B of every change of every weight; `LoraError` for a change that has none."""
    found: dict[str, list[Factors]] = {}
    for component, weights in adapters.items():
        for weight, changes in weights.items():
            for change in changes:
                product = change.low_rank
                if component != DENOISER or weight not in lora.targets or product is None:
                    raise LoraError(
                        f"LoRA {name}",
                        got=f"a change of {component}/{weight} that is no input of the graph",
                        expected="low-rank products for linear layers of the denoiser only",
                        fix=MERGE,
                    )
                down, up = product
                found.setdefault(weight, []).append((down.T, up.T))
    return found


Known = Mapping[str, Mapping[str, list[Factors]]]


def _rank(lora: LoraSpec, scales: Scales, known: Known) -> int:
    """The most columns that an image's LoRAs take of any weight; `UsageError` for too many."""
    ranks: dict[str, int] = {}
    for name in scales:
        for weight, products in known[name].items():
            ranks[weight] = ranks.get(weight, 0) + sum(a.shape[1] for a, _ in products)
    rank = max(ranks.values(), default=0)
    if rank > lora.rank:
        raise UsageError(
            f"loras {', '.join(scales)}",
            got=f"{rank} ranks in all",
            expected=f"at most {lora.rank} an image",
            fix=f"{MERGE}, or export again with `--lora-rank {rank}`",
        )
    return rank


def _write(arrays: Arrays, row: int, scales: Scales, known: Known) -> None:
    """Put an image's products into its row, one beside the other."""
    begin: dict[str, int] = {}
    for name, scale in scales.items():
        for weight, products in known[name].items():
            for a, b in products:
                first = begin.get(weight, 0)
                last = begin[weight] = first + a.shape[1]
                arrays[LORA_A + weight][row, :, first:last] = a
                np.multiply(b, np.float32(scale), out=arrays[LORA_B + weight][row, first:last])
