"""What the published models' own repositories hold in addition to weights: configs and tokenizers.

A single file has none of these, and a folder may lack a VAE or a tokenizer. A config that several
models share is stored in `configs/` once, and each model refers to it by name.
`vocabularies/README.md` says where the tokenizers come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from eri_export.checkpoints.checkpoint import Config
from eri_runtime.bundle import Family

Model = Literal[
    "sdxl-base", "sd3-medium", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell"
]
TokenizerName = Literal["clip-l", "clip-g", "t5"]

# the tokenizers of a family, by the folder in which a checkpoint keeps each
TOKENIZERS: Mapping[Family, Mapping[str, TokenizerName]] = {
    "sdxl": {"tokenizer": "clip-l", "tokenizer_2": "clip-g"},
    "sd35": {"tokenizer": "clip-l", "tokenizer_2": "clip-g", "tokenizer_3": "t5"},
    "flux": {"tokenizer": "clip-l", "tokenizer_2": "t5"},
}
TYPICAL: Mapping[Family, Model] = {"sdxl": "sdxl-base", "sd35": "sd3.5-medium", "flux": "flux-dev"}

CONFIGS = Path(__file__).with_name("configs")
VOCABULARIES = Path(__file__).with_name("vocabularies")


def configs(model: Model) -> Mapping[str, Config]:
    """Returns the config of every part in `PARTS` by name, and `scheduler` and `model_index`.

    `model_index` holds the pipeline's class and settings, not the list of its components.
    """
    parts = _load(model)
    return {
        name: _load(part) if isinstance(part, str) else part  # a name: shared by several models
        for name, part in parts.items()
    }


def tokenizer(name: TokenizerName) -> Path:
    """Returns the folder of a shipped tokenizer, for `tokenizers.load_tokenizer`."""
    return VOCABULARIES / name


def _load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return config
