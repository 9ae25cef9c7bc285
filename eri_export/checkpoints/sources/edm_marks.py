"""Small tensors that mark an SDXL trained with EDM's noise levels, and the settings they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_runtime.errors import DamagedWeightsError, short

MEAN, STD = "edm_mean", "edm_std"  # of the latents, in Playground 2.5
LEAST, MOST = "edm_vpred.sigma_min", "edm_vpred.sigma_max"  # levels, in CosXL
EDM_MARKS = (MEAN, STD, LEAST, MOST)
MANY = 64  # numbers of a mark; there are as many as latent channels

# the published schedulers' own settings, without those of the file
PLAYGROUND: Config = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "prediction_type": "epsilon",
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
}
PLAYGROUND_CALL, PLAYGROUND_SCALE = (50, 3.0), 0.5
COSXL: Config = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
}


@dataclass(frozen=True)
class EdmSettings:
    """What the marks of a file mean.

    Attributes:
        scheduler: The scheduler's config, instead of SDXL's.
        vae: Settings of the VAE's config, on top of SDXL's.
        steps_and_guidance: Those of a call that names none; None: SDXL's.
    """

    scheduler: Config
    vae: Mapping[str, Any] = field(default_factory=dict)
    steps_and_guidance: tuple[int, float] | None = None


def edm_settings(file: Path, tensors: Tensors) -> EdmSettings | None:
    """Returns the settings of an EDM model, or None for other files.

    Raises `DamagedWeightsError` if one of two marks is missing or holds no usable numbers.
    """
    if MEAN in tensors or STD in tensors:
        mean, std = (_numbers(file, tensors, name) for name in (MEAN, STD))
        vae = {"latents_mean": mean, "latents_std": std, "scaling_factor": PLAYGROUND_SCALE}
        return EdmSettings(PLAYGROUND, vae, PLAYGROUND_CALL)
    if LEAST in tensors or MOST in tensors:
        (least,), (most,) = (_numbers(file, tensors, name)[:1] for name in (LEAST, MOST))
        return EdmSettings({**COSXL, "sigma_min": least, "sigma_max": most})
    return None


def _numbers(file: Path, tensors: Tensors, name: str) -> list[float]:
    tensor = tensors.get(name)
    if tensor is None:
        expected = f"{name} beside its twin, for a model with EDM's noise levels"
        raise DamagedWeightsError(file, got=f"no {name}", expected=expected)
    count = math.prod(tensor.shape)
    values = torch.cat([*tensor.chunks()]).float().tolist() if 1 <= count <= MANY else []
    positive = name == MEAN or all(value > 0 for value in values)
    if not values or not positive or not all(map(math.isfinite, values)):
        got = short(values or list(tensor.shape))
        raise DamagedWeightsError(f"{file}: {name}", got=got, expected="a few finite numbers")
    return [float(value) for value in values]
