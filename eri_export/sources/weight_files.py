"""Which files of a folder are a component's weights, by diffusers' and transformers' names.

A variant is a word in those names ("fp16", "non_ema"); plain weights have none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NoReturn

from eri_export.sources.found import PICKLES, pickle_error
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError

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


def choose(folder: Path, names: Iterable[str], wanted: str | None) -> list[str]:
    """Those of `folder`'s file `names` to read: the variant `wanted`, or else the plain ones.

    An index comes first and its shards follow. With nothing wanted and nothing plain, it is the
    only variant. Raises `CheckpointError` where that leaves several, `PickleError` for pickles
    alone, `NotACheckpointError` for no weights, `DamagedWeightsError` for shards with no index.
    """
    names = sorted(names)
    found = variants(names)
    variant = _variant(folder, found, wanted) if found else _refuse(folder, names)
    if variant != wanted:
        log.warning("%s: weights are %s, for lack of %s", folder, _said(variant), _said(wanted))
    files = found[variant]
    if "index" in files:
        return [*files["index"][:1], *files.get("shard", ())]
    if "whole" in files:
        return files["whole"]
    raise DamagedWeightsError(
        folder,
        got=", ".join(files["shard"]),
        expected="the index of these shards beside them",
        fix="copy or download the folder again",
    )


def _variant(folder: Path, found: Variants, wanted: str | None) -> str | None:
    if wanted in found:
        return wanted
    if None in found:
        return None
    if wanted is None and len(found) == 1:
        return next(iter(found))
    got = f"weights of the variants {', '.join(map(_said, found))}"
    raise CheckpointError(folder, got=got, expected=_said(wanted), fix="choose one of the variants")


def _refuse(folder: Path, names: Iterable[str]) -> NoReturn:
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            raise pickle_error(folder / name)
    raise NotACheckpointError(folder, got="no weights", expected="a .safetensors file")


def check_variant(root: object, folders: Iterable[Iterable[str]], wanted: str | None) -> None:
    """Raise `CheckpointError` where none of the folders, by their file names, has the variant."""
    known = {each for names in folders for each in variants(names) if each is not None}
    if wanted is not None and wanted not in known:
        got = f"no weights of it, only of {', '.join(sorted(known)) or 'none'}"
        raise CheckpointError(f"{root}: variant {wanted!r}", got=got, expected="one of those")


def _said(variant: str | None) -> str:
    return "plain ones" if variant is None else f"{variant!r}"
