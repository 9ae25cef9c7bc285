"""Maps the module names of a LoRA, as every trainer spells them, to a model's weights.

The index holds every name of every weight with dots written as underscores, so kohya's names, which
have underscores only, are looked up without guessing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from eri_runtime.bundle import Family
from eri_runtime.weights.published_keys import flux, mmdit, omi, unet
from eri_runtime.weights.published_keys.parts import Entry, Form, Part

Shape = tuple[int, ...]

# the text encoders by their number in the family's pipeline, and by architecture
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
    # kohya gives Flux's T5 the number of SD3's
    "flux": {
        **{"1": "text_encoder", "2": "text_encoder_2", "3": "text_encoder_2"},
        **{"l": "text_encoder", "t5": "text_encoder_2"},
    },
}
# the prefix of a key -> "denoiser" or a key of ENCODERS; the first match counts
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
    # OMI, the format of OneTrainer
    "clip_l.": "l",
    "clip_g.": "g",
    "t5.": "t5",
    "": "denoiser",
}
PEFT = "base_model.model."

PUBLISHED: Mapping[Family, tuple[Callable[[Collection[str]], Iterable[Entry]], ...]] = {
    "sdxl": (unet.entries,),
    "sd35": (mmdit.entries, omi.mmdit_entries),
    "flux": (flux.entries, flux.xlabs_entries, omi.flux_entries),
}
# diffusers' names for LoRAs of attention processors, from before it used peft
PROCESSORS = tuple(
    (re.compile(pattern), spelling)
    for pattern, spelling in (
        (r"\.(to_[qkv])$", r".processor.\1_lora"),
        (r"\.to_out\.0$", r".processor.to_out_lora"),
        (r"\.self_attn\.([qkv])_proj$", r".self_attn.to_\1_lora"),
        (r"\.self_attn\.out_proj$", r".self_attn.to_out_lora"),
    )
)
CLIP_PREFIX = "text_model."  # older transformers versions put it before every name of a CLIP
SUFFIX = re.compile(r"\.(weight|bias|scale)$")


@dataclass(frozen=True)
class Target:
    """A weight or bias of the model that a module of a LoRA changes.

    Attributes:
        component: The component of the weight.
        name: The weight's name.
        part: The part of the module's update that belongs to the weight.
        published: Whether the module has a published checkpoint's name, not diffusers'.
    """

    component: str
    name: str
    part: Part
    published: bool

    @property
    def is_bias(self) -> bool:
        """Whether the target is a bias."""
        return self.name.endswith(".bias")


Index = Mapping[str, Mapping[str, tuple[Target, ...]]]


def module_targets(family: Family, shapes: Mapping[str, Collection[str]]) -> Index:
    """Returns the targets of every module name, with underscores for dots, by component."""
    return {
        component: _component_targets(family, component, shapes[component]) for component in shapes
    }


def component_of(family: Family, module: str) -> tuple[str, str]:
    """Returns a module's component ("" if the family has none) and its name without the prefix."""
    name = module.removeprefix(PEFT)
    prefix = next(each for each in PREFIXES if name.startswith(each))
    slot = PREFIXES[prefix]
    component = slot if slot == "denoiser" else ENCODERS[family].get(slot, "")
    return component, name.removeprefix(prefix)


def kohya_name(name: str) -> str:
    """Returns a module's name as kohya writes it, with underscores for dots."""
    return name.replace(".", "_")


def _component_targets(
    family: Family, component: str, names: Collection[str]
) -> Mapping[str, tuple[Target, ...]]:
    """Returns the targets of every module name of one component, with underscores for dots."""
    targets: dict[str, dict[str, Target]] = {}
    for alias, entry, published in _aliases(family, component, names):
        target = Target(component, entry.name, entry.part, published)
        targets.setdefault(kohya_name(alias), {}).setdefault(entry.name, target)
    return {alias: tuple(by_name.values()) for alias, by_name in targets.items()}


def _aliases(
    family: Family, component: str, names: Collection[str]
) -> Iterator[tuple[str, Entry, bool]]:
    """Yields every module name of every weight, the entry, and whether the name is published."""
    for name in names:
        for alias in _diffusers_aliases(SUFFIX.sub("", name)):
            yield alias, Entry(name, name, Form.WHOLE), False
    if component == "denoiser":
        for entries in PUBLISHED[family]:
            for entry in entries(names):
                if entry.name in names:
                    yield SUFFIX.sub("", entry.key), entry, True


def _diffusers_aliases(module: str) -> Iterator[str]:
    """Yields a module's names in diffusers and transformers, of old and new versions."""
    bare = module.removeprefix(CLIP_PREFIX)
    spellings = [bare, *(p.sub(new, bare) for p, new in PROCESSORS if p.search(bare))]
    for spelling in spellings:
        yield spelling
        yield CLIP_PREFIX + spelling
