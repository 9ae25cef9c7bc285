"""The elements of the name tables: a diffusers name, a published key, and a part of its tensor.

Parts are data, not functions: the exporter applies them to stored tensors, LoRAs to updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor, which is divided into equal blocks of rows.

    Attributes:
        begin: The first block.
        end: The block after the last one.
        of: The number of blocks in the tensor.
    """

    begin: int
    end: int
    of: int


class Form(Enum):
    """The form in which a whole tensor is stored, relative to diffusers'."""

    WHOLE = "whole"
    SWAPPED = "the two halves of the rows are swapped: (shift, scale) becomes (scale, shift)"
    TRANSPOSED = "the file stores the transposed matrix"
    MATRIX = "a 1x1 convolution is used as a matrix; a matrix or bias is unchanged"


Part = Rows | Form

# diffusers' name -> the published key, or the key and a part of its tensor. A name that does not
# end in `.weight` or `.bias` is a module's and stands for both.
Table = Mapping[str, str | tuple[str, Part]]

Q, K, V = (Rows(i, i + 1, of=3) for i in range(3))


class Entry(NamedTuple):
    """The tensor `name` of a network is the `part` of tensor `key` in a published file.

    Attributes:
        name: The tensor's name in diffusers or transformers.
        key: Its key in a published file.
        part: The part of the published tensor.
    """

    name: str
    key: str
    part: Part


def expand(table: Table, name: str = "", key: str = "") -> Iterator[Entry]:
    """Yields the entries of a table, with the prefixes `name` and `key`."""
    for own_name, source in table.items():
        own_key, part = (source, Form.WHOLE) if isinstance(source, str) else source
        for suffix in ("",) if own_name.endswith(SUFFIXES) else SUFFIXES:
            yield Entry(f"{name}{own_name}{suffix}", f"{key}{own_key}{suffix}", part)


def count_numbered(names: Iterable[str], stem: str) -> int:
    """Counts the different numbers that follow `stem.` in names, such as blocks.0 and blocks.1."""
    start = f"{stem}."
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})
