"""What tables of keys are made of: a diffusers name, the file's key, and the part of that tensor.

A layout fuses matrices, reorders or transposes them; its bytes stay where they are, so a part is a
tensor of other spans or another shape, and nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import isqrt
from typing import NamedTuple

from eri_export.checkpoint import Config, Tensors
from eri_export.stored import Span, StoredTensor
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short

Part = Callable[[StoredTensor], StoredTensor]

# diffusers' name -> the file's key, or the key and the part of it. A name that ends in neither
# `.weight` nor `.bias` is a module and stands for both.
Table = Mapping[str, str | tuple[str, Part]]

CONFIG_FIX = "give the model's own configs with `--config FOLDER`"
SUFFIXES = (".weight", ".bias")


class Entry(NamedTuple):
    """Tensor `name` of the network is `part` of tensor `key` of the file, if the file has it."""

    name: str
    key: str
    part: Part


def whole(tensor: StoredTensor) -> StoredTensor:
    """The tensor itself."""
    return tensor


def rows(begin: int, end: int, *, of: int) -> Part:
    """Of the `of` equal blocks of rows that a tensor has, those from `begin` to before `end`."""

    def part(tensor: StoredTensor) -> StoredTensor:
        if not tensor.shape or tensor.shape[0] % of or tensor.nbytes % of:
            raise _misshapen(tensor, f"a multiple of {of} rows")
        height, step = tensor.shape[0] // of, tensor.nbytes // of
        span = Span(tensor.file, tensor.start + begin * step, (end - begin) * step)
        return replace(tensor, shape=((end - begin) * height, *tensor.shape[1:]), spans=(span,))

    return part


def swapped(tensor: StoredTensor) -> StoredTensor:
    """The lower half of the rows, then the upper: (shift, scale) becomes (scale, shift)."""
    upper, lower = rows(0, 1, of=2)(tensor), rows(1, 2, of=2)(tensor)
    return replace(tensor, spans=(*lower.spans, *upper.spans))


def transposed(tensor: StoredTensor) -> StoredTensor:
    """A matrix that the file holds as its transpose."""
    if len(tensor.shape) != 2:
        raise _misshapen(tensor, "a matrix")
    return replace(tensor, shape=tensor.shape[::-1], transposed=True)


def linear(tensor: StoredTensor) -> StoredTensor:
    """A 1x1 convolution as the matrix it is; a matrix or a bias as it stands."""
    if any(size != 1 for size in tensor.shape[2:]):
        raise _misshapen(tensor, "a matrix or a 1x1 convolution")
    return replace(tensor, shape=tensor.shape[:2])


def expand(table: Table, name: str = "", key: str = "") -> Iterator[Entry]:
    """The entries of `table`, with `name` before each name and `key` before each key."""
    for end, source in table.items():
        of, part = (source, whole) if isinstance(source, str) else source
        for suffix in ("",) if end.endswith(SUFFIXES) else SUFFIXES:
            yield Entry(f"{name}{end}{suffix}", f"{key}{of}{suffix}", part)


def translated(tensors: Tensors, entries: Iterable[Entry]) -> dict[str, StoredTensor]:
    """The tensors of a file by diffusers' names; a key that no entry reads keeps its own."""
    found = [entry for entry in entries if entry.key in tensors]
    unread = tensors.keys() - {entry.key for entry in found}
    kept = (Entry(key, key, whole) for key in tensors if key in unread)
    return {name: replace(part(tensors[key]), name=name) for name, key, part in (*kept, *found)}


def count(names: Iterable[str], stem: str) -> int:
    """How many numbers follow `stem.` in names."""
    start = f"{stem}."
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def size(tensors: Tensors, name: str, axis: int) -> int:
    """One side of a tensor; `DamagedWeightsError` where there is no such tensor or side."""
    tensor = tensors.get(name)
    if tensor is None:
        file = next(iter(tensors.values())).file
        raise DamagedWeightsError(file, got=f"no {name}", expected="all weights of the network")
    if axis >= len(tensor.shape) or not tensor.shape[axis]:
        raise _misshapen(tensor, f"more than nothing along axis {axis}")
    return tensor.shape[axis]


def side(tensors: Tensors, name: str, axis: int) -> int:
    """The side of the square that an axis unrolls."""
    area = size(tensors, name, axis)
    if isqrt(area) ** 2 != area:
        raise _misshapen(tensors[name], "a square number of positions")
    return isqrt(area)


def multiple(tensors: Tensors, name: str, axis: int, by: int, what: str) -> int:
    """A side that what the config says goes in; `CheckpointError` where it does not."""
    value = size(tensors, name, axis)
    if by < 1 or value % by:
        raise CheckpointError(
            f"{tensors[name].file}: {name}",
            got=f"{value} along axis {axis}",
            expected=f"a multiple of {by}, the {what}",
            fix=CONFIG_FIX,
        )
    return value


def quotient(tensors: Tensors, name: str, axis: int, by: int, what: str) -> int:
    """How often that goes in a side; the errors of `multiple`."""
    return multiple(tensors, name, axis, by, what) // by


def known(base: Config, key: str) -> int:
    """A positive number of a config; `CheckpointError` where it has none."""
    value = base.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config: {key}", got=short(value), expected="a positive number")
    return value


def _misshapen(tensor: StoredTensor, expected: str) -> DamagedWeightsError:
    got = f"shape {short(list(tensor.shape))}"
    return DamagedWeightsError(f"{tensor.file}: {short(tensor.name)}", got=got, expected=expected)
