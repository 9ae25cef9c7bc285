"""What tables of names are made of: diffusers' name, the published key, the part of that tensor.

A part is data: an exporter takes it of a stored tensor, a LoRA of the rows of its update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Rows:
    """Of the `of` equal blocks of rows that a tensor has, those from `begin` to before `end`."""

    begin: int
    end: int
    of: int


class Form(Enum):
    """A whole tensor, as it is or in another form."""

    WHOLE = "whole"
    SWAPPED = "the lower half of the rows, then the upper: (shift, scale) becomes (scale, shift)"
    TRANSPOSED = "a matrix that the file holds as its transpose"
    MATRIX = "a 1x1 convolution as the matrix it is; a matrix or a bias as it stands"


Part = Rows | Form

# diffusers' name -> the published key, or the key and the part of it. A name that ends in neither
# `.weight` nor `.bias` is a module and stands for both.
Table = Mapping[str, str | tuple[str, Part]]

Q, K, V = (Rows(i, i + 1, of=3) for i in range(3))


class Entry(NamedTuple):
    """Tensor `name` of the network is `part` of tensor `key` of a published file."""

    name: str
    key: str
    part: Part


def expand(table: Table, name: str = "", key: str = "") -> Iterator[Entry]:
    """The entries of `table`, with `name` before each name and `key` before each key."""
    for end, source in table.items():
        of, part = (source, Form.WHOLE) if isinstance(source, str) else source
        for suffix in ("",) if end.endswith(SUFFIXES) else SUFFIXES:
            yield Entry(f"{name}{end}{suffix}", f"{key}{of}{suffix}", part)


def count(names: Iterable[str], stem: str) -> int:
    """How many numbers follow `stem.` in names."""
    start = f"{stem}."
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})
