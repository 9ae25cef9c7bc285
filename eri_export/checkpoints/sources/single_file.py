"""Opens a checkpoint in one safetensors file, named as by its authors, ComfyUI or diffusers.

What the file does not tell, such as the width of a head or the schedule, comes from the configs of
the published model nearest to it, or from the user's own folder of configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eri_export.checkpoints import shipped_configs
from eri_export.checkpoints.checkpoint import PARTS, Checkpoint, Config
from eri_export.checkpoints.sources.assign_components import assign_components, make_component
from eri_export.checkpoints.sources.config_files import read_json, with_defaults
from eri_export.checkpoints.sources.detect_networks import (
    FAMILY_OF,
    V_PREDICTION,
    ZERO_SNR,
    Contents,
    Network,
    detect_networks,
    published_model,
)
from eri_export.checkpoints.sources.folder import CONFIG, FAMILY_OF_PIPELINE, INDEX, PLAIN
from eri_export.checkpoints.sources.unsupported_files import SUPPORTED, refuse_denoiser
from eri_runtime.bundle import Family
from eri_runtime.errors import CheckpointError, NotACheckpointError

LAYOUT = "single file"
SCHEDULER = "scheduler"


def open_file(file: Path, *, config: Path | None = None) -> Checkpoint:
    """Opens a single file, with the configs and tokenizers of the folder `config` if it has any.

    Components that the file lacks have an entry in `configs` only. Raises `CheckpointError` for a
    file that is no checkpoint of a supported family.
    """
    contents = detect_networks(file)
    denoiser = _denoiser(contents)
    family = FAMILY_OF[denoiser.kind]
    configs = {**shipped_configs.configs(published_model(denoiser))}
    if contents.edm is not None:
        configs["vae"] = {**configs["vae"], **contents.edm.vae}
        configs[SCHEDULER] = contents.edm.scheduler
    if config is not None:
        configs |= _read_configs(config, family)
    networks = assign_components(file, family, contents.networks, configs)
    parts = PARTS[family]
    components = {
        name: make_component(family, name, networks[name], configs)
        for name in parts
        if name in networks
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
        steps_and_guidance=contents.edm.steps_and_guidance if contents.edm else None,
    )


def _denoiser(contents: Contents) -> Network:
    """Returns the file's only denoiser; raises `CheckpointError` for none or an unsupported one."""
    denoisers = [each for each in contents.networks if each.kind in FAMILY_OF]
    if len(denoisers) != 1:
        kinds = ", ".join(each.kind for each in contents.networks)
        raise CheckpointError(
            contents.file,
            got=f"{len(denoisers)} denoisers, in a file that holds {kinds}",
            expected=SUPPORTED,
            fix=None if denoisers else "give it with `--vae` or `--text-encoders` to a checkpoint",
        )
    refuse_denoiser(contents.file, denoisers[0].kind, denoisers[0].tensors)
    return denoisers[0]


def _training(contents: Contents) -> dict[str, Any]:
    """Returns the scheduler's settings that the file's markers override."""
    settings: dict[str, Any] = {}
    if V_PREDICTION in contents.markers:
        settings["prediction_type"] = "v_prediction"
    if ZERO_SNR in contents.markers:
        settings["rescale_betas_zero_snr"] = True
    return settings


def _read_configs(folder: Path, family: Family) -> dict[str, Config]:
    """Reads the configs of `family`'s components that a folder in diffusers' layout holds.

    Raises `NotACheckpointError` for a folder without any, `CheckpointError` for another family's.
    """
    files = {name: folder / name / CONFIG for name in PARTS[family]}
    files |= {
        SCHEDULER: folder / SCHEDULER / "scheduler_config.json",
        "model_index": folder / INDEX,
    }
    configs: dict[str, Config] = {
        name: read_json(file) for name, file in files.items() if file.is_file()
    }
    if not configs:
        raise NotACheckpointError(
            folder, got="none of them", expected=f"a folder with {INDEX} or the configs of parts"
        )
    _check_family(folder, family, configs)
    return configs


def _check_family(folder: Path, family: Family, configs: Mapping[str, Config]) -> None:
    name = configs.get("model_index", {}).get("_class_name")
    if name is not None and FAMILY_OF_PIPELINE.get(name) != family:
        raise CheckpointError(
            folder / INDEX,
            got=f"pipeline class {name!r}",
            expected=f"{PLAIN[family]}, or another pipeline of the same networks",
        )


def _tokenizers(folder: Path, family: Family) -> dict[str, Path]:
    names = shipped_configs.TOKENIZERS[family]
    return {name: folder / name for name in names if (folder / name).is_dir()}
