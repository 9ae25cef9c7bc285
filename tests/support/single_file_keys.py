"""Diffusers' state dicts under the names of published single files.

The exporter reads file names into diffusers' names by tables; here names go the other way, by
rewriting them and fusing, swapping and transposing real tensors, so that neither checks itself.
It works on meta tensors too, which gives the shapes of a full-size file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    """The same tensors with `prefix` before their names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def rewritten(state: State, rules: Iterable[tuple[str, str]]) -> State:
    """The same tensors, every rule's pattern replaced in their names."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def fused(state: State, parts: Iterable[str], whole: str) -> State:
    """Rows of `parts` stacked as `whole`, in every block where `parts[0]` is."""
    first, *others = parts
    for name in [name for name in state if f".{first}." in name]:
        start, end = name.split(f".{first}.")
        tensors = [state.pop(f"{start}.{part}.{end}") for part in (first, *others)]
        state[f"{start}.{whole}.{end}"] = torch.cat(tensors)
    return state


def halves_swapped(state: State, name: str) -> None:
    """Exchange the halves of a module's rows in place."""
    for key in (f"{name}.weight", f"{name}.bias"):
        scale, shift = state[key].chunk(2)
        state[key] = torch.cat([shift, scale])


def numbers(state: State, stem: str) -> list[int]:
    """The numbers that follow `stem` in names, in order."""
    found = (re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in state)
    return sorted({int(match[1]) for match in found if match})


RESNET = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
UNET = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
)


def ldm_unet(state: State) -> State:
    """SDXL's UNet as Stability names it."""
    layers = len(numbers(state, "down_blocks.0.resnets"))
    renamed = {}
    for name, tensor in state.items():
        if ".resnets." in name:
            (name,) = rewritten({name: tensor}, RESNET)
        renamed[_unet_block(name, layers, state)] = tensor
    return rewritten(renamed, UNET)


def _unet_block(name: str, layers: int, state: State) -> str:
    match = re.match(r"(down|up|mid)(?:_blocks\.(\d+)|_block)\.(\w+)\.(\d+)\.(.*)", name)
    if match is None or (match[3] == "attentions" and match[1] == "mid"):
        return name
    way, kind, j, rest = match[1], match[3], int(match[4]), match[5]
    if way == "mid":
        return f"middle_block.{2 * j}.{rest}"
    level, column = int(match[2]), int(kind == "attentions")
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        column = 2 if numbers(state, f"up_blocks.{level}.attentions") else 1
        return f"output_blocks.{level * (layers + 1) + layers}.{column}.{rest}"
    first = 1 if way == "down" else 0
    flat = "input_blocks" if way == "down" else "output_blocks"
    return f"{flat}.{first + level * (layers + 1) + j}.{column}.{rest}"


VAE_NAMES = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


def ldm_vae(state: State) -> State:
    """The VAE as latent diffusion names it: levels from the image, attention as convolutions."""
    last = numbers(state, "decoder.up_blocks")[-1]
    renamed = {}
    for name, tensor in rewritten(state, VAE_NAMES).items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        turned = re.sub(r"\.up\.(\d+)", lambda match: f".up.{last - int(match[1])}", name)
        renamed[turned] = tensor
    return renamed


SD3 = (
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^transformer_blocks\.", "joint_blocks."),
    (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
    (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
    (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
    (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
    (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
    (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
)


def sd3_mmdit(state: State) -> State:
    """SD3's transformer as Stability names it."""
    state = dict(state)
    last = numbers(state, "transformer_blocks")[-1]
    halves_swapped(state, "norm_out.linear")
    halves_swapped(state, f"transformer_blocks.{last}.norm1_context.linear")
    for attention in ("attn", "attn2"):
        parts = [f"{attention}.to_{part}" for part in "qkv"]
        fused(state, parts, f"x_block.{attention}.qkv")
    fused(state, [f"attn.add_{part}_proj" for part in "qkv"], "context_block.attn.qkv")
    return rewritten(state, SD3)


FLUX = (
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^time_text_embed\.timestep_embedder\.", "time_in."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"_in\.linear_1\.", "_in.in_layer."),
    (r"_in\.linear_2\.", "_in.out_layer."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.lin."),
    (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"\.norm\.linear\.", ".modulation.lin."),
    (r"^(single.*)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"^(single.*)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
    (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
    (r"^(single.*)\.proj_out\.", r"\1.linear2."),
)


def bfl_flux(state: State) -> State:
    """Flux as Black Forest Labs names it."""
    state = dict(state)
    halves_swapped(state, "norm_out.linear")
    single = {name: state.pop(name) for name in [*state] if name.startswith("single")}
    qkv = ("attn.to_q", "attn.to_k", "attn.to_v")
    state |= fused(single, [*qkv, "proj_mlp"], "linear1")
    fused(state, qkv, "img_attn.qkv")
    fused(state, [f"attn.add_{part}_proj" for part in "qkv"], "txt_attn.qkv")
    return rewritten(state, FLUX)


OPEN_CLIP = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.attn\.in_proj\.", ".attn.in_proj_"),
    (r"^text_projection\.weight", "text_projection"),
)


def open_clip(state: State) -> State:
    """CLIP-G as OpenCLIP names it, with what its checkpoints carry beside the weights."""
    state = dict(state)
    state["text_projection.weight"] = state["text_projection.weight"].T.contiguous()
    fused(state, [f"self_attn.{part}_proj" for part in "qkv"], "attn.in_proj")
    return {**rewritten(state, OPEN_CLIP), "logit_scale": torch.zeros(())}


def wrapped_clip(state: State) -> State:
    """CLIP in the names that published files have: within `text_model`."""
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": value
        for name, value in state.items()
    }
