"""Makes a shallower copy of a network that is too large to run: fewer blocks with their weights.

Every kind of block is kept, repeated kinds twice, so the copy is traced, stamped and bound like the
whole network, and reads the same files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eri_export.checkpoints import Component, Config, Tensors

# a tensor of the whole network -> its name in the copy, None if the copy does not have it
Rename = Callable[[str], str | None]


@dataclass(frozen=True)
class Stack:
    """Blocks `path`.N, whose number is the config's `depth`; `keep` are the indices in a copy."""

    path: str
    depth: str
    keep: tuple[int, ...]

    def kept(self, config: Config) -> list[int]:
        """Returns the indices of the copy's blocks in the whole network, in order."""
        depth = int(config[self.depth])
        return sorted({index % depth for index in self.keep if -depth <= index < depth})


@dataclass(frozen=True)
class Copy:
    """A component with fewer blocks; `names` maps its tensors to those of the whole network."""

    source: Component
    names: Mapping[str, str]
    depth: str

    def tensors(self, whole: Tensors) -> Tensors:
        """Returns the copy's tensors out of `whole`, the weights of the whole component."""
        return {name: whole[old] for name, old in self.names.items() if old in whole}


# An MMDiT starts with dual attention (3.5 medium) and ends with a block without text output.
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
    """Returns a copy of few blocks; None for a network that has no more than those."""
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
        match = re.fullmatch(rf"((?:.*\.)?{re.escape(stack.path)}\.)(\d+)(\..*)", name)
        if match:
            before, index, after = match[1], int(match[2]), match[3]
            return f"{before}{blocks.index(index)}{after}" if index in blocks else None
    return name


def _shallow_unet(config: Config) -> tuple[Config, Rename, str]:
    layers = config["transformer_layers_per_block"]
    shallow = {**config, "transformer_layers_per_block": _capped(layers)}

    def rename(name: str) -> str | None:
        match = re.search(r"\.transformer_blocks\.(\d+)\.", name)
        return None if match and int(match[1]) >= UNET_LAYERS else name

    return shallow, rename, f"at most {UNET_LAYERS} transformer_blocks of each {layers}"


def _capped(layers: Any) -> Any:
    """Caps a number of layers, or the numbers of each level or of each transformer of a level."""
    return (
        [_capped(n) for n in layers]
        if isinstance(layers, list | tuple)
        else min(layers, UNET_LAYERS)
    )
