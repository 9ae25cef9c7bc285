"""Names of SDXL's UNet as Stability AI publishes it: flat lists of blocks; diffusers nests them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from eri_runtime.weights.published_keys.parts import Entry, Table, count_numbered, expand

OUTER: Table = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET: Table = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# the modules of a transformer have the same names in both layouts
ATTENTION: Table = {name: name for name in ("norm", "proj_in", "proj_out")}
TRANSFORMER: Table = {
    name: name
    for name in (
        *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
        *(f"attn{i}.{end}" for i in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")),
    )
}


class Block(NamedTuple):
    """A published, flat block and its place in diffusers' nested blocks.

    Attributes:
        key: The published name of the block.
        path: The diffusers name of its level.
        layer: The index of its resnet and attention in the level.
        resnet: Whether it has a resnet.
        depth: The number of transformer blocks in it.
        sampler: The published name of its down- or upsampler, which ends the level, if any.
    """

    key: str
    path: str
    layer: int
    resnet: bool
    depth: int
    sampler: str | None


def entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of the UNet; `keys` are its published or diffusers names."""
    nested = any(key.startswith("down_blocks.") for key in keys)
    blocks = _nested_blocks(keys) if nested else _flat_blocks(keys)
    middle = _depth(keys, "mid_block.attentions.0" if nested else "middle_block.1")
    yield from expand(OUTER)
    yield from expand(RESNET, "mid_block.resnets.0.", "middle_block.0.")
    yield from _attention("mid_block.attentions.0.", "middle_block.1.", middle)
    yield from expand(RESNET, "mid_block.resnets.1.", "middle_block.2.")
    for block in blocks:
        yield from _block_entries(block)


def _block_entries(block: Block) -> Iterator[Entry]:
    """Yields the entries of one block."""
    key, path = f"{block.key}.", f"{block.path}."
    if block.resnet:
        yield from expand(RESNET, f"{path}resnets.{block.layer}.", f"{key}0.")
    if block.depth:
        yield from _attention(f"{path}attentions.{block.layer}.", f"{key}1.", block.depth)
    if block.sampler is not None:
        sampler = "downsamplers" if block.key.startswith("input") else "upsamplers"
        yield from expand({f"{sampler}.0.conv": block.sampler}, path, key)


def _attention(name: str, key: str, depth: int) -> Iterator[Entry]:
    """Yields the entries of an attention module with `depth` transformer blocks."""
    yield from expand(ATTENTION, name, key)
    for i in range(depth):
        block = f"transformer_blocks.{i}."
        yield from expand(TRANSFORMER, name + block, key + block)


def _flat_blocks(keys: Collection[str]) -> Iterator[Block]:
    """Yields the blocks from published names; a down- or upsampler ends a level."""
    for flat, nested, first in (
        ("input_blocks", "down_blocks", 1),
        ("output_blocks", "up_blocks", 0),
    ):
        level, layer = 0, 0
        for i in range(first, count_numbered(keys, flat)):
            key = f"{flat}.{i}"
            ends = (end for end in ("0.op", "1.conv", "2.conv") if f"{key}.{end}.weight" in keys)
            resnet = f"{key}.0.in_layers.0.weight" in keys
            sampler = next(ends, None)
            yield Block(key, f"{nested}.{level}", layer, resnet, _depth(keys, f"{key}.1"), sampler)
            level, layer = (level + 1, 0) if sampler else (level, layer + 1)


def _nested_blocks(keys: Collection[str]) -> Iterator[Block]:
    """Yields the blocks from diffusers' names; a downsampler is a separate block."""
    i = 1
    for level in range(count_numbered(keys, "down_blocks")):
        path = f"down_blocks.{level}"
        for layer in range(count_numbered(keys, f"{path}.resnets")):
            depth = _depth(keys, f"{path}.attentions.{layer}")
            yield Block(f"input_blocks.{i}", path, layer, True, depth, None)
            i += 1
        if f"{path}.downsamplers.0.conv.weight" in keys:
            yield Block(f"input_blocks.{i}", path, 0, False, 0, "0.op")
            i += 1
    i = 0
    for level in range(count_numbered(keys, "up_blocks")):
        path = f"up_blocks.{level}"
        last = count_numbered(keys, f"{path}.resnets") - 1
        for layer in range(last + 1):
            depth = _depth(keys, f"{path}.attentions.{layer}")
            ends = layer == last and f"{path}.upsamplers.0.conv.weight" in keys
            sampler = f"{2 if depth else 1}.conv" if ends else None
            yield Block(f"output_blocks.{i}", path, layer, True, depth, sampler)
            i += 1


def _depth(keys: Collection[str], attention: str) -> int:
    """Returns the number of transformer blocks in an attention module."""
    return count_numbered(keys, f"{attention}.transformer_blocks")
