"""Opens a folder that diffusers saved: `model_index.json` and one folder per component."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eri_export.checkpoints import shipped_configs
from eri_export.checkpoints.checkpoint import DENOISERS, PARTS, Checkpoint, Component, Config
from eri_export.checkpoints.quantised import check_method, dequantised
from eri_export.checkpoints.sources.config_files import read_json, require_exists, with_defaults
from eri_export.checkpoints.sources.unsupported_files import refuse_wider_config
from eri_export.checkpoints.sources.weight_files import check_variant, choose
from eri_export.checkpoints.stored_tensors import StoredTensor, read_headers
from eri_runtime.bundle import Family
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError, short

log = logging.getLogger(__name__)

LAYOUT = "diffusers folder"
INDEX = "model_index.json"
CONFIG = "config.json"
SHARD = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
REFINER = "requires_aesthetics_score"
ABSENT = [None, None]  # the index's entry for a component that the pipeline was saved without

# The pipeline class gives the family. Pipelines that only call the same networks in another way,
# or beside networks of their own, are read without what they add. Those of other denoisers (Fill,
# Kontext, InstructPix2Pix, ...) feed inputs that a bundle does not have.
STEMS: Mapping[Family, tuple[str, ...]] = {  # the plain one first
    "sdxl": (
        "StableDiffusionXL",
        "StableDiffusionXLPAG",
        "StableDiffusionXLControlNet",
        "StableDiffusionXLControlNetPAG",
        "StableDiffusionXLControlNetUnion",
        "StableDiffusionXLAdapter",
    ),
    "sd35": ("StableDiffusion3", "StableDiffusion3PAG", "StableDiffusion3ControlNet"),
    "flux": ("Flux", "FluxControlNet"),
}
TASKS = ("", "Img2Img", "Inpaint", "Inpainting")
FAMILY_OF_PIPELINE: Mapping[str, Family] = {
    f"{stem}{task}Pipeline": family
    for family, stems in STEMS.items()
    for stem in stems
    for task in TASKS
}
PLAIN: Mapping[Family, str] = {family: f"{stems[0]}Pipeline" for family, stems in STEMS.items()}
USUAL_PARTS = ("scheduler", "feature_extractor", "image_encoder", "safety_checker")


def open_folder(root: Path, *, variant: str | None = None) -> Checkpoint:
    """Opens a diffusers folder without reading its weights.

    `variant` is the word in the names of the weight files to read ("fp16"); a component without
    that variant is read from its plain file. A component that the index lists as `[null, null]` is
    left out; for a missing VAE `configs` has the published one's. Raises `NotACheckpointError`,
    `PickleError` or `CheckpointError`.
    """
    if not (root / INDEX).is_file():
        children = sorted(child.name for child in root.iterdir())[:8]
        raise NotACheckpointError(
            root, got=f"a folder holding {children}", expected=f"a diffusers folder with {INDEX}"
        )
    index = read_json(root / INDEX)
    family = _family(root, index)
    _warn_of_additions(root, index, family)
    components = _components(root, index, family, variant)
    denoiser = components[DENOISERS[family]]
    refuse_wider_config(denoiser.origin / CONFIG, denoiser.class_name, denoiser.config)
    check_variant(root, (_names(each.origin) for each in components.values()), variant)
    return Checkpoint(
        root=root,
        layout=LAYOUT,
        family=family,
        index=index,
        components=components,
        configs=_configs(family, components),
        tokenizers=_tokenizers(root, components),
        scheduler=read_json(
            require_exists(root / "scheduler" / "scheduler_config.json", "a scheduler")
        ),
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
        folder = require_exists(root / name, f"the folder of component {name!r}")
        components[name] = open_part(folder, name, class_name, variant=variant)
    return components


def _configs(family: Family, components: Mapping[str, Component]) -> dict[str, Config]:
    """Returns every component's config, and the published VAE's if there is no VAE."""
    configs = {name: component.config for name, component in components.items()}
    if "vae" not in configs:
        published = shipped_configs.configs(shipped_configs.TYPICAL[family])["vae"]
        configs["vae"] = with_defaults(PARTS[family]["vae"], published)
    return configs


def _family(root: Path, index: Mapping[str, Any]) -> Family:
    name = str(index.get("_class_name"))
    if name not in FAMILY_OF_PIPELINE:
        raise CheckpointError(
            root / INDEX,
            got=f"pipeline class {name!r}",
            expected=f"{' or '.join(PLAIN.values())}, or another pipeline of the same networks",
        )
    if index.get(REFINER):
        raise CheckpointError(
            f"{root / INDEX}: {REFINER}",
            got="an SDXL refiner, which reads a score where SDXL reads a target size",
            expected="a base model",
        )
    return FAMILY_OF_PIPELINE[name]


def _warn_of_additions(root: Path, index: Mapping[str, Any], family: Family) -> None:
    """Says that a pipeline is read as the plain one of its family, and which parts are left out."""
    name, known = str(index["_class_name"]), {*PARTS[family], *USUAL_PARTS}
    if not name.startswith(STEMS[family][1:]):
        return
    parts = [
        part
        for part, entry in index.items()
        if isinstance(entry, list)
        and entry != ABSENT
        and part not in known
        and not part.startswith("tokenizer")
    ]
    without = f", without its {' and '.join(parts)}" if parts else ""
    log.warning("%s: %s is exported as %s%s", root, name, PLAIN[family], without)


def _check_class(root: Path, index: Mapping[str, Any], name: str, class_name: str) -> None:
    entry = index.get(name)
    indexed = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if indexed != class_name:
        raise CheckpointError(
            f"{root / INDEX}: component {name!r}",
            got="none" if indexed is None else indexed,
            expected=class_name,
            fix=f"save the whole pipeline; what it has not, its index gives as {ABSENT}",
        )


def _tokenizers(root: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    encoders = (name for name in components if name.startswith("text_encoder"))
    names = (name.replace("text_encoder", "tokenizer") for name in encoders)
    return {name: require_exists(root / name, "a tokenizer folder") for name in names}


def open_part(folder: Path, name: str, class_name: str, *, variant: str | None = None) -> Component:
    """Opens one component's folder; the headers of its weights are read on first use."""
    config = with_defaults(class_name, read_json(folder / CONFIG))
    check_method(folder / CONFIG, config)
    return Component(name, class_name, folder, config, partial(_dequantised, folder, variant))


def _dequantised(folder: Path, variant: str | None) -> dict[str, StoredTensor]:
    return dequantised(_tensors(folder, variant))


def _tensors(folder: Path, variant: str | None) -> dict[str, StoredTensor]:
    """Returns every tensor of all shards, by name.

    Raises `PickleError` for a folder with pickled weights only, `DamagedWeightsError` for a file
    that is truncated or inconsistent, `NotACheckpointError` for no weights at all.
    """
    first, *_ = choose(folder, _names(folder), variant)
    if not first.endswith(".json"):
        return read_headers([_existing(folder / first)])
    shards = _weight_map(folder / first)
    tensors = read_headers(_existing(folder / shard) for shard in sorted(set(shards.values())))
    _check_shards(folder / first, shards, tensors)
    return tensors


def _names(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir()]


def _existing(file: Path) -> Path:
    """Returns `file`; raises `NotACheckpointError` if it is missing or a broken link."""
    return require_exists(file, "a weights file, or a link to one that is still there")


def _weight_map(index: Path) -> dict[str, str]:
    """Returns the shard of each tensor.

    Raises `DamagedWeightsError` for a shard that is not a file next to the index.
    """
    shards = read_json(_existing(index)).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise DamagedWeightsError(
            index, got=f"weight_map {short(shards)}", expected="a shard's name for each tensor"
        )
    for shard in shards.values():
        if not SHARD.fullmatch(shard):
            expected = "the name of a safetensors file beside the index"
            raise DamagedWeightsError(index, got=short(shard), expected=expected)
    return shards


def _check_shards(
    index: Path, shards: Mapping[str, str], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises `DamagedWeightsError` unless every tensor is in the shard that the index names."""
    files = {name: tensor.file.name for name, tensor in tensors.items()}
    for name in sorted(shards.keys() | files.keys()):
        if files.get(name) != shards.get(name):
            raise DamagedWeightsError(
                f"{index}: {name!r}",
                got=f"it in {files[name]}" if name in files else "no shard with it",
                expected=f"it in {shards[name]}" if name in shards else "no tensor but the index's",
                fix="copy or download the index and its shards again, from one place",
            )
