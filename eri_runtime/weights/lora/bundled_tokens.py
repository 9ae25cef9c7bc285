"""Embeddings of tokens in LoRA files: a LoRA is loaded without them, and they are named.

OneTrainer adds the tokens that it trained with a LoRA to its file, as `bundle_emb.TOKEN.clip_l` and
the like. A file of embeddings alone is a textual inversion (Gal et al. 2022, arXiv 2208.01618).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from eri_runtime.errors import LoraError, short
from eri_runtime.weights.lora.selected import SelectedTensors

log = logging.getLogger(__name__)

BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(?P<word>string_to_param\.\*|[^.]+)", re.DOTALL)
# the keys of a textual inversion: kohya's, and those for several text encoders
ALONE = frozenset({"emb_params", "clip_l", "clip_g", "t5", "t5xxl"})


def without_tokens(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the tensors of a LoRA without bundled embeddings of tokens, which are logged by name.

    Raises `LoraError` for a file that has nothing else: a textual inversion.
    """
    bundled = {key: match["token"] for key in tensors if (match := BUNDLED.fullmatch(key))}
    if tensors and (len(bundled) == len(tensors) or _is_textual_inversion(tensors)):
        named = list(dict.fromkeys(bundled.values()) or tensors)
        raise LoraError(
            "LoRA",
            got=f"a textual inversion, the embeddings of {', '.join(map(short, named))} alone",
            expected="a LoRA",
            fix="load it with `pipe.load_textual_inversion`, or --textual-inversion of a command",
        )
    if not bundled:
        return tensors
    tokens = ", ".join(map(short, dict.fromkeys(bundled.values())))
    log.warning(
        "the LoRA brings embeddings of the tokens %s, which are left out: give its file to "
        "`pipe.load_textual_inversion` or --textual-inversion too, for prompts to name them",
        tokens,
    )
    return SelectedTensors(tensors, (key for key in tensors if key not in bundled))


def _is_textual_inversion(tensors: Mapping[str, Any]) -> bool:
    """Returns whether the keys are a textual inversion's; diffusers' key is the token itself."""
    if tensors.keys() <= ALONE:
        return True
    if len(tensors) != 1:
        return False
    (key,) = tensors
    return key.startswith("<") and key.endswith(">") and getattr(tensors[key], "ndim", 0) in (1, 2)
