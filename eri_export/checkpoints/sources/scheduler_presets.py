"""Another scheduler than the checkpoint's: a preset for a kind of distilled model, or a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eri_export.checkpoints.checkpoint import Checkpoint, Config
from eri_export.checkpoints.sources.config_files import read_json
from eri_runtime.bundle import Family, hub
from eri_runtime.errors import UnknownNameError, UsageError

FILE, FOLDER = "scheduler_config.json", "scheduler"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a kind of distilled model needs, by its authors.

    Attributes:
        keys: Keys of the scheduler's config that it needs; the others stay the checkpoint's.
        steps: Steps of a call that names none.
        guidance: Guidance scale of a call that names none; up to 1 means none.
        embedded: The same for a network that embeds the guidance scale.
    """

    keys: Config
    steps: int
    guidance: float
    embedded: float | None = None


PRESETS: Mapping[str, Mapping[Family, Preset]] = {
    # SDXL-Turbo, SD3.5 large turbo (adversarial diffusion distillation)
    "turbo": {
        "sdxl": Preset(
            keys={
                "_class_name": "EulerAncestralDiscreteScheduler",
                "timestep_spacing": "trailing",
            },
            steps=4,
            guidance=0.0,
        ),
        "sd35": Preset(keys={}, steps=4, guidance=0.0),
    },
    "lightning": {
        "sdxl": Preset(
            keys={"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
            steps=4,
            guidance=0.0,
        ),
    },
    "hyper": {
        "sdxl": Preset(
            keys={
                "_class_name": "DDIMScheduler",
                "timestep_spacing": "trailing",
                "clip_sample": False,  # as in SDXL's own config; DDIM's default is True
            },
            steps=8,
            guidance=0.0,
        ),
        "flux": Preset(keys={}, steps=8, guidance=3.5),
    },
    "lcm": {
        "sdxl": Preset(keys={"_class_name": "LCMScheduler"}, steps=4, guidance=1.0, embedded=8.0),
    },
    "tcd": {
        "sdxl": Preset(keys={"_class_name": "TCDScheduler"}, steps=4, guidance=0.0),
    },
}


def with_scheduler(checkpoint: Checkpoint, scheduler: str | Path) -> Checkpoint:
    """Returns the checkpoint with another scheduler.

    `scheduler` is the name of a preset, which changes single keys, or the path of a
    `scheduler_config.json` or of a folder with one, which replaces the checkpoint's. Raises
    `UnknownNameError` for neither, `UsageError` for a preset that does not fit the model, and
    `NotACheckpointError` for a file that is no config.
    """
    if str(scheduler) in PRESETS:
        return _with_preset(checkpoint, str(scheduler))
    file = _config_file(Path(scheduler))
    return dataclasses.replace(checkpoint, scheduler=read_json(file), scheduler_file=file)


def _with_preset(checkpoint: Checkpoint, name: str) -> Checkpoint:
    preset = PRESETS[name].get(checkpoint.family)
    if preset is None:
        known = [each for each, families in PRESETS.items() if checkpoint.family in families]
        raise UsageError(
            "scheduler",
            got=f"{name} for a checkpoint of the {checkpoint.family} family",
            expected=f"one of {', '.join(known)}",
            fix=f"give a {FILE} instead, if the model has one",
        )
    if str(checkpoint.scheduler.get("_class_name")).startswith("EDM"):
        raise UsageError(
            "scheduler",
            got=f"{name} for a model trained with EDM's noise levels",
            expected=f"no preset, or a {FILE} of EDM",
            fix="leave out --scheduler",
        )
    embeds = checkpoint.denoiser.config.get("time_cond_proj_dim") is not None
    guidance = preset.embedded if embeds and preset.embedded is not None else preset.guidance
    scheduler: dict[str, Any] = {**checkpoint.scheduler, **preset.keys}
    call = (preset.steps, guidance)
    return dataclasses.replace(checkpoint, scheduler=scheduler, steps_and_guidance=call)


def _config_file(path: Path) -> Path:
    """Returns the config at a path; raises `UnknownNameError` if there is none."""
    files = (path, path / FILE, path / FOLDER / FILE)
    file = next((each for each in files if hub.path_exists(each) and each.is_file()), None)
    if file is None:
        raise UnknownNameError(
            "scheduler",
            got=f"{str(path)!r}, which is no preset and holds no {FILE}",
            expected=f"one of {', '.join(PRESETS)}, or a {FILE}",
        )
    return file
