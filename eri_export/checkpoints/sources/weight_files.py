"""Finds a component's weight files in its folder by diffusers' and transformers' file names.

A variant is a word in those names ("fp16", "non_ema"); plain weights have none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NoReturn

from eri_export.checkpoints.sources.config_files import PICKLES
from eri_runtime.bundle import pickle_error
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError

log = logging.getLogger(__name__)

Kind = Literal["index", "shard", "whole"]
Variants = Mapping[str | None, Mapping[Kind, list[str]]]  # variant -> kind -> file names

STEMS = ("diffusion_pytorch_model", "model")
WORD, NUMBER = r"(?P<variant>\w+)", r"-\d{5}-of-\d{5}"
# how each kind of file ends; diffusers wrote the second forms before 2025
ENDINGS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("index", re.compile(rf"\.safetensors\.index(\.{WORD})?\.json")),
    ("index", re.compile(rf"\.safetensors\.{WORD}\.index\.json")),
    ("shard", re.compile(rf"(\.{WORD})?{NUMBER}\.safetensors")),
    ("shard", re.compile(rf"{NUMBER}\.{WORD}\.safetensors")),
    ("whole", re.compile(rf"(\.{WORD})?\.safetensors")),
)


def variants(names: Iterable[str]) -> Variants:
    """Returns the weights among the file names of one folder; plain ones have the key None."""
    names = sorted(names)
    for stem in STEMS:
        by_variant: dict[str | None, dict[Kind, list[str]]] = {}
        for name in names:
            for kind, ending in ENDINGS:
                match = name.startswith(stem) and ending.fullmatch(name, len(stem))
                if match:
                    by_variant.setdefault(match["variant"], {}).setdefault(kind, []).append(name)
        if by_variant:
            return by_variant
    return {}


def choose(folder: Path, names: Iterable[str], wanted: str | None) -> list[str]:
    """Returns the files to read among `folder`'s file `names`, an index before its shards.

    They are those of the variant `wanted`, else the plain ones; with neither a wanted variant nor
    plain weights, those of the only variant. Raises `CheckpointError` if several variants remain,
    `PickleError` if all weights are pickled, `NotACheckpointError` for no weights,
    `DamagedWeightsError` for shards without an index.
    """
    names = sorted(names)
    by_variant = variants(names)
    variant = _variant(folder, by_variant, wanted) if by_variant else _refuse(folder, names)
    if variant != wanted:
        log.warning("%s: weights are %s, for lack of %s", folder, _text(variant), _text(wanted))
    files = by_variant[variant]
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


def _variant(folder: Path, by_variant: Variants, wanted: str | None) -> str | None:
    if wanted in by_variant:
        return wanted
    if None in by_variant:
        return None
    if wanted is None and len(by_variant) == 1:
        return next(iter(by_variant))
    got = f"weights of the variants {', '.join(map(_text, by_variant))}"
    raise CheckpointError(
        folder,
        got=got,
        expected=_text(wanted),
        fix=f"add `--variant {min(filter(None, by_variant))}`",
    )


def _refuse(folder: Path, names: Iterable[str]) -> NoReturn:
    """Raises the error of a folder without safetensors weights."""
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            raise pickle_error(folder / name, folder / name)
    raise NotACheckpointError(folder, got="no weights", expected="a .safetensors file")


def check_variant(root: object, folders: Iterable[Iterable[str]], wanted: str | None) -> None:
    """Raises `CheckpointError` if no folder, given as its file names, has the wanted variant."""
    known = {each for names in folders for each in variants(names) if each is not None}
    if wanted is not None and wanted not in known:
        got = f"no weights of it, only of {', '.join(sorted(known)) or 'none'}"
        raise CheckpointError(f"{root}: variant {wanted!r}", got=got, expected="one of those")


def _text(variant: str | None) -> str:
    return "plain ones" if variant is None else f"{variant!r}"
