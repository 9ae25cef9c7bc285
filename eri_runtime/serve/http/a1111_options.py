"""AUTOMATIC1111's options: which model its clients' requests use. The others cannot be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eri_runtime.checks import text
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.status import Model

MODEL = "sd_model_checkpoint"
HASH = "sd_checkpoint_hash"  # read only: a client that posts all options back need not change it
# values that mean what this server does anyway; the first is what it reports
FIXED: Mapping[str, tuple[object, ...]] = {
    "sd_vae": ("Automatic", "None", "", None),
    "CLIP_stop_at_last_layers": (1, 0, 2, None),
    "forge_additional_modules": ([], None),
    "samples_format": ("png", None),
    "live_previews_enable": (True, None),
    "eta_noise_seed_delta": (0, None),
    "enable_pnginfo": (True, None),
}


class Options:
    """The options of AUTOMATIC1111's clients, which share them.

    Attributes:
        model: The model that requests use unless they name another.
    """

    def __init__(self, engine: Engine) -> None:
        self._models = engine.models
        self.model: Model = next(iter(engine.models.values()))

    def shown(self) -> dict[str, Any]:
        """Returns what `GET /options` replies."""
        own = {MODEL: self.model.name, HASH: sha256_of(self.model)}
        return {**own, **{name: values[0] for name, values in FIXED.items()}}

    def checked(self, given: Mapping[str, Any]) -> Model:
        """Returns the model that these options choose: the present one if they name none.

        Raises:
            UnknownNameError: For an unknown model or option.
            UsageError: For a value that this server cannot take on.
        """
        for name, value in given.items():
            if name in FIXED and value not in FIXED[name]:
                raise UsageError(name, got=short(value), expected=short(FIXED[name][0]))
            if name not in self.shown():
                expected = f"one of {', '.join(self.shown())}"
                raise UnknownNameError("option", got=short(name), expected=expected)
        if given.get(HASH) is not None:
            text(HASH, given[HASH])
        return self._named(given.get(MODEL))

    def _named(self, name: object) -> Model:
        """Returns a model by its name; the present one for an empty name."""
        if name in (None, ""):
            return self.model
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        expected = f"one of {', '.join(self._models)}"
        raise UnknownNameError("model", got=short(name), expected=expected)


def sha256_of(model: Model) -> str:
    """Returns the sha256 of a model's denoiser, whose start its pictures name as `Model hash`."""
    return model.bundle.files[model.bundle.components["denoiser"].weights].sha256
