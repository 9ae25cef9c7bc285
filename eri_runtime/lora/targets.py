"""Which weights a module of a LoRA stands for, by every name that trainers give it.

All names of a weight are known before a key is read, so kohya's underscores need no guessing:
names are looked up with their dots as underscores too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from eri_runtime.published import flux, mmdit, unet
from eri_runtime.published.parts import Entry, Form, Part
from eri_runtime.spec import Family

Shape = tuple[int, ...]

# the text encoders in the order of a family's pipeline, and by what they are
ENCODERS: Mapping[Family, Mapping[str, str]] = {
    "sdxl": {
        "1": "text_encoder",
        "2": "text_encoder_2",
        "l": "text_encoder",
        "g": "text_encoder_2",
    },
    "sd35": {
        **{"1": "text_encoder", "2": "text_encoder_2", "3": "text_encoder_3"},
        **{"l": "text_encoder", "g": "text_encoder_2", "t5": "text_encoder_3"},
    },
    # kohya numbers Flux's T5 as SD3's
    "flux": {
        **{"1": "text_encoder", "2": "text_encoder_2", "3": "text_encoder_2"},
        **{"l": "text_encoder", "t5": "text_encoder_2"},
    },
}
# what a key begins with -> "denoiser", or which of ENCODERS; the first that fits counts
PREFIXES: Mapping[str, str] = {
    "lora_unet_": "denoiser",
    "lora_transformer_": "denoiser",
    "lycoris_": "denoiser",
    "model.diffusion_model.": "denoiser",
    "diffusion_model.": "denoiser",
    "unet.": "denoiser",
    "transformer.": "denoiser",
    "lora_te_": "1",
    "lora_te1_": "1",
    "lora_te2_": "2",
    "lora_te3_": "3",
    "text_encoder.": "1",
    "text_encoder_2.": "2",
    "text_encoder_3.": "3",
    "text_encoders.clip_l.transformer.": "l",
    "text_encoders.clip_g.transformer.": "g",
    "text_encoders.t5xxl.transformer.": "t5",
    "": "denoiser",
}
PEFT = "base_model.model."

PUBLISHED: Mapping[Family, tuple[Callable[[Collection[str]], Iterable[Entry]], ...]] = {
    "sdxl": (unet.entries,),
    "sd35": (mmdit.entries,),
    "flux": (flux.entries, flux.xlabs_entries),
}
# diffusers' names of the processors it had before peft
PROCESSORS = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"\.(to_[qkv])$", r".processor.\1_lora"),
        (r"\.to_out\.0$", r".processor.to_out_lora"),
        (r"\.self_attn\.([qkv])_proj$", r".self_attn.to_\1_lora"),
        (r"\.self_attn\.out_proj$", r".self_attn.to_out_lora"),
    )
)
WRAPPER = "text_model."  # older transformers put it before every name of a CLIP
SUFFIX = re.compile(r"\.(weight|bias|scale)$")


@dataclass(frozen=True)
class Target:
    """A weight or a bias of the model, and the part of a module's update that it takes."""

    component: str
    name: str
    part: Part
    published: bool

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias."""
        return self.name.endswith(".bias")


Index = Mapping[str, Mapping[str, tuple[Target, ...]]]


def index(family: Family, shapes: Mapping[str, Collection[str]]) -> Index:
    """For each component: every flat name of a module -> what it stands for."""
    return {component: _names(family, component, shapes[component]) for component in shapes}


def component_of(family: Family, module: str) -> tuple[str, str]:
    """The component whose module that is, and its name in there; "" where the family has none."""
    name = module.removeprefix(PEFT)
    prefix = next(each for each in PREFIXES if name.startswith(each))
    slot = PREFIXES[prefix]
    component = slot if slot == "denoiser" else ENCODERS[family].get(slot, "")
    return component, name.removeprefix(prefix)


def flat(name: str) -> str:
    """A module's name as kohya writes it."""
    return name.replace(".", "_")


def _names(
    family: Family, component: str, names: Collection[str]
) -> Mapping[str, tuple[Target, ...]]:
    found: dict[str, dict[str, Target]] = {}
    for alias, entry, published in _aliases(family, component, names):
        target = Target(component, entry.name, entry.part, published)
        found.setdefault(flat(alias), {}).setdefault(entry.name, target)
    return {alias: tuple(targets.values()) for alias, targets in found.items()}


def _aliases(
    family: Family, component: str, names: Collection[str]
) -> Iterator[tuple[str, Entry, bool]]:
    for name in names:
        for alias in _own(SUFFIX.sub("", name)):
            yield alias, Entry(name, name, Form.WHOLE), False
    if component == "denoiser":
        for entries in PUBLISHED[family]:
            for entry in entries(names):
                if entry.name in names:
                    yield SUFFIX.sub("", entry.key), entry, True


def _own(module: str) -> Iterator[str]:
    bare = module.removeprefix(WRAPPER)
    spellings = [bare, *(p.sub(new, bare) for p, new in PROCESSORS if p.search(bare))]
    for spelling in spellings:
        yield spelling
        yield WRAPPER + spelling
