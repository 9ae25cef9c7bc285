"""Which files of a folder are a component's weights, by diffusers' and transformers' names.

A variant is a word in those names ("fp16", "non_ema"); plain weights have none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from eri_runtime.errors import CheckpointError, DamagedWeightsError

log = logging.getLogger(__name__)

Kind = Literal["index", "shard", "whole"]
Variants = Mapping[str | None, Mapping[Kind, list[str]]]  # variant -> kind -> file names

STEMS = ("diffusion_pytorch_model", "model")
WORD, NUMBER = r"(?P<variant>\w+)", r"-\d{5}-of-\d{5}"
# how each kind of file ends; the second forms are diffusers' of before 2025
ENDINGS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("index", re.compile(rf"\.safetensors\.index(\.{WORD})?\.json")),
    ("index", re.compile(rf"\.safetensors\.{WORD}\.index\.json")),
    ("shard", re.compile(rf"(\.{WORD})?{NUMBER}\.safetensors")),
    ("shard", re.compile(rf"{NUMBER}\.{WORD}\.safetensors")),
    ("whole", re.compile(rf"(\.{WORD})?\.safetensors")),
)


def variants(names: Iterable[str]) -> Variants:
    """The weights among the file names of one folder; plain ones under `None`."""
    names = sorted(names)
    for stem in STEMS:
        found: dict[str | None, dict[Kind, list[str]]] = {}
        for name in names:
            for kind, ending in ENDINGS:
                match = name.startswith(stem) and ending.fullmatch(name, len(stem))
                if match:
                    found.setdefault(match["variant"], {}).setdefault(kind, []).append(name)
        if found:
            return found
    return {}


def choose(where: object, found: Variants, wanted: str | None) -> list[str]:
    """The files to read in the folder `where`: of the variant `wanted`, or else the plain ones.

    An index comes first and its shards follow. With nothing wanted and nothing plain, it is the
    only variant. Raises `CheckpointError` where that leaves no choice or several,
    `DamagedWeightsError` for shards without their index.
    """
    variant = _variant(where, found, wanted)
    if variant != wanted:
        log.warning("%s: weights are %s, for lack of %s", where, _said(variant), _said(wanted))
    files = found[variant]
    if "index" in files:
        return [*files["index"][:1], *files.get("shard", ())]
    if "whole" in files:
        return files["whole"]
    raise DamagedWeightsError(
        where,
        got=f"{', '.join(files['shard'])}",
        expected="the index of these shards beside them",
        fix="copy or download the folder again",
    )


def _variant(where: object, found: Variants, wanted: str | None) -> str | None:
    if wanted in found:
        return wanted
    if None in found:
        return None
    if wanted is None and len(found) == 1:
        return next(iter(found))
    got = f"weights of the variants {', '.join(map(_said, found))}"
    raise CheckpointError(where, got=got, expected=_said(wanted), fix="choose one of the variants")


def _said(variant: str | None) -> str:
    return "plain ones" if variant is None else f"{variant!r}"
