"""A folder as diffusers saves it: `model_index.json` and one folder for each component."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eri_export.checkpoint import PARTS, Checkpoint, Component
from eri_export.sources.found import PICKLES, existing, pickle_error, read_json, with_defaults
from eri_export.stored import StoredTensor, read_headers
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError
from eri_runtime.spec import Family

LAYOUT = "diffusers folder"
INDEX = "model_index.json"
CONFIG = "config.json"

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


def open_folder(root: Path) -> Checkpoint:
    """Open a diffusers folder without reading a weight.

    Raises `NotACheckpointError`, `PickleError` or `CheckpointError`, each naming the offender.
    """
    if not (root / INDEX).is_file():
        found = sorted(child.name for child in root.iterdir())[:8]
        raise NotACheckpointError(
            root, got=f"a folder holding {found}", expected=f"a diffusers folder with {INDEX}"
        )
    index = read_json(root / INDEX)
    family = _family(root, index)
    parts = PARTS[family]
    components = {name: _component(root, index, name, parts[name]) for name in parts}
    return Checkpoint(
        root=root,
        layout=LAYOUT,
        family=family,
        index=index,
        components=components,
        configs={name: component.config for name, component in components.items()},
        tokenizers=_tokenizers(root, components),
        scheduler=read_json(existing(root / "scheduler" / "scheduler_config.json", "a scheduler")),
    )


def _tokenizers(root: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    encoders = (name for name in components if name.startswith("text_encoder"))
    names = (name.replace("text_encoder", "tokenizer") for name in encoders)
    return {name: existing(root / name, "a tokenizer folder") for name in names}


def _family(root: Path, index: Mapping[str, Any]) -> Family:
    name = str(index.get("_class_name"))
    if name not in FAMILY_OF_PIPELINE:
        raise CheckpointError(
            root / INDEX,
            got=f"pipeline class {name!r}",
            expected=f"one of {', '.join(FAMILY_OF_PIPELINE)}",
        )
    return FAMILY_OF_PIPELINE[name]


def _component(root: Path, index: Mapping[str, Any], name: str, class_name: str) -> Component:
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != class_name:
        raise CheckpointError(
            f"{root / INDEX}: component {name!r}",
            got="none" if found is None else found,
            expected=class_name,
            fix="every component of the family is exported; save the whole pipeline",
        )
    return open_part(existing(root / name, f"the folder of component {name!r}"), name, class_name)


def open_part(folder: Path, name: str, class_name: str) -> Component:
    """One component's folder: its config, and its weights when they are asked for."""
    config = with_defaults(class_name, read_json(folder / CONFIG))
    return Component(name, class_name, folder, config, partial(_tensors, folder))


def _tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of every shard, by name.

    Raises `PickleError` for a folder with pickled weights only, `DamagedWeightsError` for a file
    that is truncated or inconsistent, `NotACheckpointError` for no weights at all.
    """
    return read_headers(_weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The shards an index names, or the single file; diffusers' and transformers' names."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            return [_shard(index, shard) for shard in shards]
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
    pickles = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES]
    if pickles:
        raise pickle_error(pickles[0])
    raise NotACheckpointError(folder, got="no weights", expected="a .safetensors file")


def _shard(index: Path, name: str) -> Path:
    """A shard beside its index; `DamagedWeightsError` for one that would lie elsewhere."""
    if Path(name).name != name:
        raise DamagedWeightsError(index, got=name, expected="the name of a file beside the index")
    return existing(index.parent / name, "a shard that the index names")
