"""Names that OneTrainer's OMI format has for parts of fused layers, such as `qkv.0` for q.

OMI spells modules as the published checkpoints do, but a layer that they fuse is one module a
part, numbered in the order of the rows: `qkv.0`, `qkv.1`, `qkv.2`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from eri_runtime.weights.published_keys import flux, mmdit
from eri_runtime.weights.published_keys.parts import Entry, Form, Rows, expand


def flux_entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields the entries of Flux that OMI names differently; `keys` as for `flux.entries`."""
    yield from expand({"x_embedder": "img_in.proj"})
    yield from _numbered_parts(flux.entries(keys))


def mmdit_entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields the entries of SD3 that OMI names differently; `keys` as for `mmdit.entries`."""
    yield from _numbered_parts(mmdit.entries(keys))


def _numbered_parts(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yields an entry for each part of a fused tensor, in the order of its rows."""
    seen = Counter[str]()
    for entry in entries:
        if isinstance(entry.part, Rows):
            module, _, suffix = entry.key.rpartition(".")
            yield Entry(entry.name, f"{module}.{seen[entry.key]}.{suffix}", Form.WHOLE)
            seen[entry.key] += 1
