"""Detects from its keys which model a LoRA was trained for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FLUX, SD3, SDXL = "Flux", "SD3", "SDXL"
OF_FAMILY = {"flux": FLUX, "sd35": SD3, "sdxl": SDXL}

# checked in this order: the first pattern that matches a key decides
KEY_PATTERNS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        FLUX: r"single_transformer_blocks|single_blocks|double_blocks[._]\d+[._](img|txt)_",
        SD3: r"joint_blocks",
        f"{SD3} or {FLUX}": r"(^|[._])transformer_blocks[._]\d+[._]attn[._](to|add)_",
        "Stable Diffusion 1 or 2": r"(down_blocks[._]0|up_blocks[._]3|input_blocks[._]1[._]1)"
        r"[._](attentions|transformer_blocks)|^lora_te_text_model",
        SDXL: r"add_embedding|label_emb|^lora_te2_|(down|up|mid|input|middle|output)_blocks?[._]",
        "Wan": r"blocks[._]\d+[._](self|cross)_attn[._][qkvo]\b",
    }.items()
}


def detect_model(keys: Iterable[str]) -> str | None:
    """Returns the model's name, or None if no key identifies it."""
    names = list(keys)
    matches = (
        model
        for model, pattern in KEY_PATTERNS.items()
        if any(pattern.search(name) for name in names)
    )
    return next(matches, None)


def other_model_hint(keys: Iterable[str], family: str) -> str | None:
    """Returns a hint for the error message if the LoRA looks like another model's, else None."""
    name = detect_model(keys)
    if name is None or OF_FAMILY[family] in name:
        return None
    return f"it looks like a LoRA for {name}, and this is {OF_FAMILY[family]}"
