"""Names of the VAE in the latent-diffusion code, which every single-file checkpoint uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eri_runtime.weights.published_keys.parts import Entry, Form, Table, count_numbered, expand

OUTER: Table = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
RESNET: Table = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "conv_shortcut": "nin_shortcut",
}
MIDDLE: Table = {
    **{f"resnets.0.{name}": f"block_1.{key}" for name, key in RESNET.items()},
    **{f"resnets.1.{name}": f"block_2.{key}" for name, key in RESNET.items()},
    "attentions.0.group_norm": "attn_1.norm",
    "attentions.0.to_q": ("attn_1.q", Form.MATRIX),
    "attentions.0.to_k": ("attn_1.k", Form.MATRIX),
    "attentions.0.to_v": ("attn_1.v", Form.MATRIX),
    "attentions.0.to_out.0": ("attn_1.proj_out", Form.MATRIX),
}


def entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of encoder and decoder; `keys` are the published names.

    Published files number the decoder's levels from the image, diffusers from the latents.
    """
    for half in ("encoder", "decoder"):
        yield from expand(OUTER, f"{half}.", f"{half}.")
        yield from expand(MIDDLE, f"{half}.mid_block.", f"{half}.mid.")
    downs, ups = count_numbered(keys, "encoder.down"), count_numbered(keys, "decoder.up")
    for i in range(downs):
        yield from _level(keys, f"encoder.down_blocks.{i}", f"encoder.down.{i}", "downsample")
    for i in range(ups):
        yield from _level(keys, f"decoder.up_blocks.{ups - 1 - i}", f"decoder.up.{i}", "upsample")


def _level(keys: Collection[str], name: str, key: str, sampler: str) -> Iterator[Entry]:
    """Yields the entries of one level: its resnets and its down- or upsampler."""
    yield from expand({f"{sampler}rs.0.conv": f"{sampler}.conv"}, f"{name}.", f"{key}.")
    for j in range(count_numbered(keys, f"{key}.block")):
        yield from expand(RESNET, f"{name}.resnets.{j}.", f"{key}.block.{j}.")
