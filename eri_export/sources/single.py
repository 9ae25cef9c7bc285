"""A checkpoint in one safetensors file: in its authors' names, ComfyUI's or diffusers'.

What the file does not say, as the width of a head or the schedule, the configs of the published
model nearest to it say, or those of the user's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eri_export import shipped
from eri_export.checkpoint import PARTS, Checkpoint, Config
from eri_export.sources.folder import CONFIG, FAMILY_OF_PIPELINE, INDEX
from eri_export.sources.found import read_json, with_defaults
from eri_export.sources.places import part, placed
from eri_export.sources.recognise import (
    FAMILY_OF,
    V_PREDICTION,
    ZERO_SNR,
    Contents,
    Network,
    published_model,
    recognise,
)
from eri_export.sources.refused import SUPPORTED, refuse_denoiser
from eri_runtime.errors import CheckpointError, NotACheckpointError
from eri_runtime.spec import Family

LAYOUT = "single file"
SCHEDULER = "scheduler"


def open_file(file: Path, *, config: Path | None = None) -> Checkpoint:
    """Open a single file, with the configs of the folder `config` where it has them.

    What the file lacks of its family is in `configs` only; `tokenizers` are those of `config`.
    Raises `CheckpointError` for what is not a checkpoint of these families, by its name.
    """
    contents = recognise(file)
    denoiser = _denoiser(contents)
    family = FAMILY_OF[denoiser.kind]
    configs = {**shipped.configs(published_model(denoiser))}
    if config is not None:
        configs |= _given(config, family)
    networks = placed(file, family, contents.networks, configs)
    parts = PARTS[family]
    components = {
        name: part(family, name, networks[name], configs) for name in parts if name in networks
    }
    known = {name: with_defaults(parts[name], configs[name]) for name in parts}
    return Checkpoint(
        root=file,
        layout=LAYOUT,
        family=family,
        index=configs["model_index"],
        components=components,
        configs={**known, **{name: each.config for name, each in components.items()}},
        tokenizers=_tokenizers(config, family) if config else {},
        scheduler={**configs[SCHEDULER], **_training(contents)},
    )


def _denoiser(contents: Contents) -> Network:
    found = [each for each in contents.networks if each.kind in FAMILY_OF]
    if len(found) != 1:
        kinds = ", ".join(each.kind for each in contents.networks)
        raise CheckpointError(
            contents.file,
            got=f"{len(found)} denoisers, in a file that holds {kinds}",
            expected=SUPPORTED,
            fix=None if found else "give it with `--vae` or `--text-encoders` to a checkpoint",
        )
    refuse_denoiser(contents.file, found[0].kind, found[0].tensors)
    return found[0]


def _training(contents: Contents) -> dict[str, Any]:
    """What a file's own markers say of its schedule; without them the config's word holds."""
    settings: dict[str, Any] = {}
    if V_PREDICTION in contents.markers:
        settings["prediction_type"] = "v_prediction"
    if ZERO_SNR in contents.markers:
        settings["rescale_betas_zero_snr"] = True
    return settings


def _given(folder: Path, family: Family) -> dict[str, Config]:
    """The configs that a folder in diffusers' layout holds, of the parts of `family`."""
    files = {name: folder / name / CONFIG for name in PARTS[family]}
    files |= {
        SCHEDULER: folder / SCHEDULER / "scheduler_config.json",
        "model_index": folder / INDEX,
    }
    given: dict[str, Config] = {
        name: read_json(file) for name, file in files.items() if file.is_file()
    }
    if not given:
        raise NotACheckpointError(
            folder, got="none of them", expected=f"a folder with {INDEX} or the configs of parts"
        )
    _check_family(folder, family, given)
    return given


def _check_family(folder: Path, family: Family, given: Mapping[str, Config]) -> None:
    name = given.get("model_index", {}).get("_class_name")
    if name is not None and FAMILY_OF_PIPELINE.get(name) != family:
        names = [each for each, of in FAMILY_OF_PIPELINE.items() if of == family]
        raise CheckpointError(
            folder / INDEX, got=f"pipeline class {name!r}", expected=f"one of {', '.join(names)}"
        )


def _tokenizers(folder: Path, family: Family) -> dict[str, Path]:
    names = shipped.TOKENIZERS[family]
    return {name: folder / name for name in names if (folder / name).is_dir()}
