"""Which model a LoRA was trained for, as far as its keys tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FLUX, SD3, SDXL = "Flux", "SD3", "SDXL"
OF_FAMILY = {"flux": FLUX, "sd35": SD3, "sdxl": SDXL}

# the first that some key of a LoRA has
SIGNS: Mapping[str, re.Pattern[str]] = {
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


def looks_like(keys: Iterable[str]) -> str | None:
    """The model by name, or None where no key tells."""
    text = list(keys)
    found = (name for name, sign in SIGNS.items() if any(sign.search(key) for key in text))
    return next(found, None)


def other(keys: Iterable[str], family: str) -> str | None:
    """What to say of a LoRA that looks like one for another model, or None."""
    name = looks_like(keys)
    if name is None or OF_FAMILY[family] in name:
        return None
    return f"it looks like a LoRA for {name}, and this is {OF_FAMILY[family]}"
