"""A folder as diffusers saves it: `model_index.json` and one folder for each component."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eri_export import shipped
from eri_export.checkpoint import DENOISERS, PARTS, Checkpoint, Component, Config
from eri_export.sources.found import existing, read_json, with_defaults
from eri_export.sources.weight_files import check_variant, choose
from eri_export.stored import StoredTensor, read_headers
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError, short
from eri_runtime.spec import Family

log = logging.getLogger(__name__)

LAYOUT = "diffusers folder"
INDEX = "model_index.json"
CONFIG = "config.json"
SHARD = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
REFINER = "requires_aesthetics_score"
ABSENT = [None, None]  # the index's entry for a component the pipeline was saved without

# A pipeline class fixes the family; others of the same networks (ControlNet, Fill, ...) give the
# denoiser inputs the contract does not have.
FAMILY_OF_PIPELINE: Mapping[str, Family] = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd35",
    "StableDiffusion3Img2ImgPipeline": "sd35",
    "FluxPipeline": "flux",
    "FluxImg2ImgPipeline": "flux",
}


def open_folder(root: Path, *, variant: str | None = None) -> Checkpoint:
    """Open a diffusers folder without reading a weight.

    `variant` is the word in the names of the weight files to read ("fp16"); a component without
    it is read from its plain file. A component that the index gives as `[null, null]` is left out
    of all but `configs`, which then holds the published VAE's. Raises `NotACheckpointError`,
    `PickleError` or `CheckpointError`, each naming the offender.
    """
    if not (root / INDEX).is_file():
        found = sorted(child.name for child in root.iterdir())[:8]
        raise NotACheckpointError(
            root, got=f"a folder holding {found}", expected=f"a diffusers folder with {INDEX}"
        )
    index = read_json(root / INDEX)
    family = _family(root, index)
    components = _components(root, index, family, variant)
    check_variant(root, (_names(each.origin) for each in components.values()), variant)
    return Checkpoint(
        root=root,
        layout=LAYOUT,
        family=family,
        index=index,
        components=components,
        configs=_configs(family, components),
        tokenizers=_tokenizers(root, components),
        scheduler=read_json(existing(root / "scheduler" / "scheduler_config.json", "a scheduler")),
    )


def _components(
    root: Path, index: Mapping[str, Any], family: Family, variant: str | None
) -> dict[str, Component]:
    components = {}
    for name, class_name in PARTS[family].items():
        if index.get(name) == ABSENT and name != DENOISERS[family]:
            log.warning("%s: there is no %s", root, name)
            continue
        _check_class(root, index, name, class_name)
        folder = existing(root / name, f"the folder of component {name!r}")
        components[name] = open_part(folder, name, class_name, variant=variant)
    return components


def _configs(family: Family, components: Mapping[str, Component]) -> dict[str, Config]:
    """Every component's config, and the published VAE's for the latents of a denoiser alone."""
    configs = {name: component.config for name, component in components.items()}
    if "vae" not in configs:
        published = shipped.configs(shipped.TYPICAL[family])["vae"]
        configs["vae"] = with_defaults(PARTS[family]["vae"], published)
    return configs


def _family(root: Path, index: Mapping[str, Any]) -> Family:
    name = str(index.get("_class_name"))
    if name not in FAMILY_OF_PIPELINE:
        raise CheckpointError(
            root / INDEX,
            got=f"pipeline class {name!r}",
            expected=f"one of {', '.join(FAMILY_OF_PIPELINE)}",
        )
    if index.get(REFINER):
        raise CheckpointError(
            f"{root / INDEX}: {REFINER}",
            got="an SDXL refiner, which reads a score where SDXL reads a target size",
            expected="a base model",
        )
    return FAMILY_OF_PIPELINE[name]


def _check_class(root: Path, index: Mapping[str, Any], name: str, class_name: str) -> None:
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != class_name:
        raise CheckpointError(
            f"{root / INDEX}: component {name!r}",
            got="none" if found is None else found,
            expected=class_name,
            fix=f"save the whole pipeline; what it has not, its index gives as {ABSENT}",
        )


def _tokenizers(root: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    encoders = (name for name in components if name.startswith("text_encoder"))
    names = (name.replace("text_encoder", "tokenizer") for name in encoders)
    return {name: existing(root / name, "a tokenizer folder") for name in names}


def open_part(folder: Path, name: str, class_name: str, *, variant: str | None = None) -> Component:
    """One component's folder: its config, and its weights when they are asked for."""
    config = with_defaults(class_name, read_json(folder / CONFIG))
    return Component(name, class_name, folder, config, partial(_tensors, folder, variant))


def _tensors(folder: Path, variant: str | None) -> dict[str, StoredTensor]:
    """Every tensor of every shard, by name.

    Raises `PickleError` for a folder with pickled weights only, `DamagedWeightsError` for a file
    that is truncated or inconsistent, `NotACheckpointError` for no weights at all.
    """
    first, *_ = choose(folder, _names(folder), variant)
    if not first.endswith(".json"):
        return read_headers([_present(folder / first)])
    where = _weight_map(folder / first)
    tensors = read_headers(_present(folder / shard) for shard in sorted(set(where.values())))
    _check_shards(folder / first, where, tensors)
    return tensors


def _names(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir()]


def _present(file: Path) -> Path:
    """`file`; `NotACheckpointError` where it is missing, or a link to what is."""
    return existing(file, "a weights file, or a link to one that is still there")


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor; `DamagedWeightsError` for one that would lie elsewhere."""
    where = read_json(_present(index)).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise DamagedWeightsError(
            index, got=f"weight_map {short(where)}", expected="a shard's name for each tensor"
        )
    for shard in where.values():
        if not SHARD.fullmatch(shard):
            expected = "the name of a safetensors file beside the index"
            raise DamagedWeightsError(index, got=short(shard), expected=expected)
    return where


def _check_shards(
    index: Path, where: Mapping[str, str], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise `DamagedWeightsError` unless the shards hold what the index says, each its own."""
    held = {name: tensor.file.name for name, tensor in tensors.items()}
    for name in sorted(where.keys() | held.keys()):
        if held.get(name) != where.get(name):
            raise DamagedWeightsError(
                f"{index}: {name!r}",
                got=f"it in {held[name]}" if name in held else "no shard with it",
                expected=f"it in {where[name]}" if name in where else "no tensor but the index's",
                fix="copy or download the index and its shards again, from one place",
            )
