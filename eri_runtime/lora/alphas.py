"""Scales that peft keeps in a config of its own, which diffusers writes as metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eri_runtime.errors import LoraError, short

METADATA = "lora_adapter_metadata"
HOMES = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Alphas:
    """`lora_alpha`, `alpha_pattern` and `use_rslora` of peft's config, after a pipeline's part."""

    config: Mapping[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """What multiplies a module's product: alpha / rank, or alpha / sqrt(rank) of rsLoRA."""
        home, _, name = module.partition(".")
        prefix, name = (f"{home}.", name) if home in HOMES else ("", module)
        patterns = self.config.get(f"{prefix}alpha_pattern") or {}
        named = (patterns[key] for key in patterns if f".{name}".endswith(f".{key}"))
        alpha = next(named, self.config.get(f"{prefix}lora_alpha", rank))
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise LoraError(METADATA, got=f"an alpha of {short(alpha)}", expected="a number")
        return alpha / (math.sqrt(rank) if self.config.get(f"{prefix}use_rslora") else rank)


def read_alphas(metadata: Mapping[str, str]) -> Alphas:
    """The config in a file's metadata; `LoraError` for one that is none."""
    text = metadata.get(METADATA, "{}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraError(METADATA, got=short(text), expected="JSON") from error
    patterns = config.items() if isinstance(config, dict) else ()
    wrong = [key for key, value in patterns if key.endswith("alpha_pattern") and value]
    if not isinstance(config, dict) or not all(isinstance(config[key], dict) for key in wrong):
        raise LoraError(METADATA, got=short(text), expected="a config of peft")
    return Alphas(config)
