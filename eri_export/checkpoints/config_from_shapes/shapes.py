"""Renames a published file's tensors to diffusers' names, and checks numbers read from shapes.

A published layout may fuse, reorder or transpose matrices. Nothing is read or copied for that: a
part of a tensor is a tensor with other spans or another shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import isqrt

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.stored_tensors import Span, StoredTensor
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short
from eri_runtime.weights import Entry, Form, Part, Rows

CONFIG_FIX = "give the model's own configs with `--config FOLDER`"


def select_part(tensor: StoredTensor, part: Part) -> StoredTensor:
    """Returns a part of a tensor; raises `DamagedWeightsError` if its shape has no such part."""
    match part:
        case Rows():
            return _rows(tensor, part)
        case Form.WHOLE:
            return tensor
        case Form.SWAPPED:
            upper, lower = (_rows(tensor, Rows(i, i + 1, of=2)) for i in range(2))
            return replace(tensor, spans=(*lower.spans, *upper.spans))
        case Form.TRANSPOSED:
            if len(tensor.shape) != 2:
                raise _misshapen(tensor, "a matrix")
            return replace(tensor, shape=tensor.shape[::-1], transposed=True)
        case Form.MATRIX:
            if any(size != 1 for size in tensor.shape[2:]):
                raise _misshapen(tensor, "a matrix or a 1x1 convolution")
            return replace(tensor, shape=tensor.shape[:2])


def _rows(tensor: StoredTensor, rows: Rows) -> StoredTensor:
    if not tensor.shape or tensor.shape[0] % rows.of or tensor.nbytes % rows.of:
        raise _misshapen(tensor, f"a multiple of {rows.of} rows")
    height, step = tensor.shape[0] // rows.of, tensor.nbytes // rows.of
    blocks = rows.end - rows.begin
    span = Span(tensor.file, tensor.start + rows.begin * step, blocks * step)
    return replace(tensor, shape=(blocks * height, *tensor.shape[1:]), spans=(span,))


def rename_tensors(tensors: Tensors, entries: Iterable[Entry]) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by diffusers' names; a key without an entry keeps its name."""
    present = [entry for entry in entries if entry.key in tensors]
    unread = tensors.keys() - {entry.key for entry in present}
    kept = (Entry(key, key, Form.WHOLE) for key in tensors if key in unread)
    every = (*kept, *present)
    return {name: replace(select_part(tensors[key], part), name=name) for name, key, part in every}


def size(tensors: Tensors, name: str, axis: int) -> int:
    """Returns a tensor's size along an axis; raises `DamagedWeightsError` if there is none."""
    tensor = tensors.get(name)
    if tensor is None:
        file = next(iter(tensors.values())).file
        raise DamagedWeightsError(file, got=f"no {name}", expected="all weights of the network")
    if axis >= len(tensor.shape) or not tensor.shape[axis]:
        raise _misshapen(tensor, f"more than nothing along axis {axis}")
    return tensor.shape[axis]


def side(tensors: Tensors, name: str, axis: int) -> int:
    """Returns the side of a square of positions, whose number is the size along an axis.

    Raises `DamagedWeightsError` if that is no square number.
    """
    area = size(tensors, name, axis)
    if isqrt(area) ** 2 != area:
        raise _misshapen(tensors[name], "a square number of positions")
    return isqrt(area)


def multiple(tensors: Tensors, name: str, axis: int, by: int, what: str) -> int:
    """Returns a size that `by`, a number of the config, divides; `CheckpointError` if it does not.

    `what` names the number in the error.
    """
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
    """Returns a size divided by a number of the config; raises the errors of `multiple`."""
    return multiple(tensors, name, axis, by, what) // by


def known(base: Config, key: str) -> int:
    """Returns a positive number of a config; raises `CheckpointError` if it has none."""
    value = base.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config: {key}", got=short(value), expected="a positive number")
    return value


def _misshapen(tensor: StoredTensor, expected: str) -> DamagedWeightsError:
    got = f"shape {short(list(tensor.shape))}"
    return DamagedWeightsError(f"{tensor.file}: {short(tensor.name)}", got=got, expected=expected)
