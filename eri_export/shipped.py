"""What the published models' own repositories hold beside the weights: configs and tokenizers.

A single file and a folder without a VAE or a tokenizer leave these out. Parts that models share
lie in `configs/` once, and a model names them; `vocabularies/README.md` says where the tokenizers
come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from eri_export.checkpoint import Config
from eri_runtime.spec import Family

Model = Literal[
    "sdxl-base", "sd3-medium", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell"
]
TokenizerName = Literal["clip-l", "clip-g", "t5"]

# the tokenizers of a family, by the folder that a checkpoint keeps each in
TOKENIZERS: Mapping[Family, Mapping[str, TokenizerName]] = {
    "sdxl": {"tokenizer": "clip-l", "tokenizer_2": "clip-g"},
    "sd35": {"tokenizer": "clip-l", "tokenizer_2": "clip-g", "tokenizer_3": "t5"},
    "flux": {"tokenizer": "clip-l", "tokenizer_2": "t5"},
}
TYPICAL: Mapping[Family, Model] = {"sdxl": "sdxl-base", "sd35": "sd3.5-medium", "flux": "flux-dev"}

CONFIGS = Path(__file__).with_name("configs")
VOCABULARIES = Path(__file__).with_name("vocabularies")


def configs(model: Model) -> Mapping[str, Config]:
    """The config of every part in `PARTS` by name, and `scheduler` and `model_index`.

    `model_index` holds the pipeline's class and settings, not the list of its components.
    """
    parts = _load(model)
    return {
        name: _load(part) if isinstance(part, str) else part  # a name: shared by several models
        for name, part in parts.items()
    }


def tokenizer(name: TokenizerName) -> Path:
    """A folder that transformers' `AutoTokenizer` reads."""
    return VOCABULARIES / name


def _load(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
