"""Parses the keys of a LoRA file: each names a module and the role of a tensor in its update.

Every trainer has its own endings; here they are mapped to one set of roles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eri_runtime.errors import LoraError, short

Role = Literal[
    "down",
    "up",
    "mid",
    "up_bias",
    "alpha",
    "dora_scale",
    "magnitude",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "diff",
    "diff_b",
    "value",
]

ENDINGS: Mapping[str, Role] = {
    # kohya and OneTrainer, and LoCon's Tucker core
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".dora_scale.weight": "dora_scale",
    # peft
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    # diffusers before peft, and XLabs
    ".down.weight": "down",
    ".up.weight": "up",
    # LyCORIS
    ".hada_w1_a": "hada_w1_a",
    ".hada_w1_b": "hada_w1_b",
    ".hada_w2_a": "hada_w2_a",
    ".hada_w2_b": "hada_w2_b",
    ".hada_t1": "hada_t1",
    ".hada_t2": "hada_t2",
    ".lokr_w1": "lokr_w1",
    ".lokr_w1_a": "lokr_w1_a",
    ".lokr_w1_b": "lokr_w1_b",
    ".lokr_w2": "lokr_w2",
    ".lokr_w2_a": "lokr_w2_a",
    ".lokr_w2_b": "lokr_w2_b",
    ".lokr_t2": "lokr_t2",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    # the norms that Flux's control LoRAs store in full
    ".scale": "value",
}
ENDING = re.compile("(.+?)(" + "|".join(re.escape(ending) for ending in ENDINGS) + ")", re.DOTALL)

# peft inserts the name of the adapter; old diffusers wraps the two factors in a module
ADAPTER_NAME = re.compile(r"\.default(_\d+)?(?=\.weight$|\.bias$|$)")
# torch.compile wraps a module, at any depth; kohya's names have underscores for the dots
COMPILED = re.compile(r"_orig_mod[._]")
WRAPPER_MODULE = re.compile(r"\.lora(_linear_layer)?$")


@dataclass(frozen=True)
class Module:
    """One module of a LoRA.

    Attributes:
        name: The module's name, as the file spells it but without torch.compile's `_orig_mod`.
        keys: The key of each of its tensors, by role.
    """

    name: str
    keys: Mapping[Role, str]


@dataclass(frozen=True)
class Parsed:
    """The parsed keys of a LoRA file.

    Attributes:
        modules: The modules.
        unknown: Keys whose ending is unknown.
    """

    modules: tuple[Module, ...]
    unknown: tuple[str, ...]


def parse(keys: Iterable[str]) -> Parsed:
    """Groups the keys of a LoRA by module; raises `LoraError` if two have the same role."""
    modules: dict[str, dict[Role, str]] = {}
    unknown = []
    for key in keys:
        match = ENDING.fullmatch(ADAPTER_NAME.sub("", COMPILED.sub("", key)))
        if match is None:
            unknown.append(key)
            continue
        name, role = WRAPPER_MODULE.sub("", match[1]), ENDINGS[match[2]]
        roles = modules.setdefault(name, {})
        if role in roles:
            raise LoraError(short(key), got=f"also {short(roles[role])}", expected="one of the two")
        roles[role] = key
    parsed = (Module(name, roles) for name, roles in modules.items())
    return Parsed(tuple(parsed), tuple(unknown))
