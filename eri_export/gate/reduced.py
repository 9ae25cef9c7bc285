"""A shallower copy of a network too large to run here: fewer blocks, each with its own weights.

Every kind of block is kept, the repeated kinds twice, so the copy is traced, stamped and bound as
the whole is, and reads the same files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eri_export.checkpoint import Component, Config, Tensors

Rename = Callable[
    [str], str | None
]  # a tensor of the whole -> its name in the copy, None if left out


@dataclass(frozen=True)
class Stack:
    """Blocks `path`.N, as many as the config's `depth` says; `keep` are those of a copy."""

    path: str
    depth: str
    keep: tuple[int, ...]

    def kept(self, config: Config) -> list[int]:
        """The blocks of the whole that make the copy, in order."""
        depth = int(config[self.depth])
        return sorted({index % depth for index in self.keep if -depth <= index < depth})


@dataclass(frozen=True)
class Copy:
    """A component with fewer blocks; `names` gives the whole's name of each of its tensors."""

    source: Component
    names: Mapping[str, str]
    depth: str

    def tensors(self, whole: Tensors) -> Tensors:
        """Those of `whole`, a file of the whole component's weights, that the copy has."""
        return {name: whole[old] for name, old in self.names.items() if old in whole}


# An MMDiT begins with dual attention (3.5 medium) and ends with a block that drops the text.
STACKS: Mapping[str, tuple[Stack, ...]] = {
    "FluxTransformer2DModel": (
        Stack("transformer_blocks", "num_layers", (0, -2, -1)),
        Stack("single_transformer_blocks", "num_single_layers", (0, -2, -1)),
    ),
    "SD3Transformer2DModel": (Stack("transformer_blocks", "num_layers", (0, 1, -3, -2, -1)),),
    "T5EncoderModel": (Stack("encoder.block", "num_layers", (0, -2, -1)),),
    "CLIPTextModel": (Stack("encoder.layers", "num_hidden_layers", (0, -2, -1)),),
    "CLIPTextModelWithProjection": (Stack("encoder.layers", "num_hidden_layers", (0, -2, -1)),),
}
UNET_LAYERS = 2  # of every transformer of a UNet


def reduced(source: Component) -> Copy | None:
    """A copy of few blocks, or None for a network that has no more than those."""
    if source.class_name == "UNet2DConditionModel":
        return _copy(source, *_shallow_unet(source.config))
    stacks = STACKS.get(source.class_name, ())
    return _copy(source, *_shallow_stacks(source.config, stacks))


def _copy(source: Component, config: Config, rename: Rename, depth: str) -> Copy | None:
    renamed = {new: old for old in source.tensors if (new := rename(old)) is not None}
    if len(renamed) == len(source.tensors):
        return None
    tensors = {new: source.tensors[old] for new, old in renamed.items()}
    copy = dataclasses.replace(source, config=config, read=lambda: tensors)
    return Copy(copy, renamed, depth)


def _shallow_stacks(config: Config, stacks: tuple[Stack, ...]) -> tuple[Config, Rename, str]:
    kept = {stack: stack.kept(config) for stack in stacks}
    depths = {stack.depth: len(blocks) for stack, blocks in kept.items()}
    shallow = {**config, **depths}
    if "dual_attention_layers" in config:
        (blocks,) = kept.values()
        dual = set(config["dual_attention_layers"])
        shallow["dual_attention_layers"] = tuple(n for n, old in enumerate(blocks) if old in dual)
    text = " and ".join(f"{depths[s.depth]} of {config[s.depth]} {s.path}" for s in stacks)
    return shallow, lambda name: _renamed(name, kept), text


def _renamed(name: str, kept: Mapping[Stack, list[int]]) -> str | None:
    for stack, blocks in kept.items():
        found = re.fullmatch(rf"((?:.*\.)?{re.escape(stack.path)}\.)(\d+)(\..*)", name)
        if found:
            before, index, after = found[1], int(found[2]), found[3]
            return f"{before}{blocks.index(index)}{after}" if index in blocks else None
    return name


def _shallow_unet(config: Config) -> tuple[Config, Rename, str]:
    layers = config["transformer_layers_per_block"]
    shallow = {**config, "transformer_layers_per_block": _capped(layers)}

    def rename(name: str) -> str | None:
        found = re.search(r"\.transformer_blocks\.(\d+)\.", name)
        return None if found and int(found[1]) >= UNET_LAYERS else name

    return shallow, rename, f"at most {UNET_LAYERS} transformer_blocks of each {layers}"


def _capped(layers: Any) -> Any:
    """A number, one for each level, or one for each transformer of each level."""
    return (
        [_capped(n) for n in layers]
        if isinstance(layers, list | tuple)
        else min(layers, UNET_LAYERS)
    )
