"""The keys of a LoRA file: which module each is of, and which factor of its update it holds.

Trainers end their keys in their own ways; a module and a role is what all of them say.
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
    # kohya, and LoCon's Tucker core
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
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
    # the norms that Flux's control LoRAs bring along whole
    ".scale": "value",
}
ENDING = re.compile("(.+?)(" + "|".join(re.escape(ending) for ending in ENDINGS) + ")", re.DOTALL)

# peft puts the name of an adapter in, and old diffusers a module around the two factors
NOISE = re.compile(r"\.default(_\d+)?(?=\.weight$|\.bias$|$)")
WRAPPER = re.compile(r"\.lora(_linear_layer)?$")


@dataclass(frozen=True)
class Module:
    """The factors of one module's update: the key of each, by role."""

    name: str
    keys: Mapping[Role, str]


@dataclass(frozen=True)
class Parsed:
    """The modules of a LoRA file, and the keys that end in no known way."""

    modules: tuple[Module, ...]
    unknown: tuple[str, ...]


def parse(keys: Iterable[str]) -> Parsed:
    """Sort the keys of a LoRA by module; `LoraError` where two of them are one factor."""
    modules: dict[str, dict[Role, str]] = {}
    unknown = []
    for key in keys:
        match = ENDING.fullmatch(NOISE.sub("", key))
        if match is None:
            unknown.append(key)
            continue
        name, role = WRAPPER.sub("", match[1]), ENDINGS[match[2]]
        found = modules.setdefault(name, {})
        if role in found:
            raise LoraError(short(key), got=f"also {short(found[role])}", expected="one of the two")
        found[role] = key
    every = (Module(name, found) for name, found in modules.items())
    return Parsed(tuple(every), tuple(unknown))
