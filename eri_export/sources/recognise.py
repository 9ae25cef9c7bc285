"""Which networks a safetensors file holds, told by its keys and shapes, never by its name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eri_export.checkpoint import Config, Tensors
from eri_export.shipped import Model, TokenizerName
from eri_export.sources.keys import flux, mmdit, text, unet, vae
from eri_export.sources.keys.parts import translated
from eri_export.sources.refused import refuse_keys
from eri_export.stored import StoredTensor, read_headers
from eri_runtime import published
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short
from eri_runtime.published.parts import Entry
from eri_runtime.spec import Family

log = logging.getLogger(__name__)

Kind = Literal["unet", "mmdit", "flux", "vae", "clip", "t5"]

FAMILY_OF: Mapping[Kind, Family] = {"unet": "sdxl", "mmdit": "sd35", "flux": "flux"}
READERS: Mapping[Kind, Callable[[Tensors, Config], dict[str, Any]]] = {
    "unet": unet.config,
    "mmdit": mmdit.config,
    "flux": flux.config,
    "vae": vae.config,
    "clip": text.clip_config,
    "t5": text.t5_config,
}


@dataclass(frozen=True)
class Network:
    """A network found somewhere: its tensors by diffusers' names.

    `encoder` says which text encoder it is, where its place does; `config` and `tokenizer` are its
    own, where it came with them.
    """

    kind: Kind
    tensors: Tensors
    origin: Path
    encoder: TokenizerName | None = None
    config: Config | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Layout:
    """A network's names in a file: all of `signature` tells it, `entries` translates it."""

    kind: Kind
    signature: tuple[str, ...]
    entries: Callable[[Collection[str]], Iterable[Entry]]


def _as_named(_keys: Collection[str]) -> Iterator[Entry]:
    """Diffusers' or transformers' own names."""
    return iter(())


_TOKENS = "embeddings.token_embedding.weight"
LAYOUTS = (
    Layout("unet", ("input_blocks.0.0.weight",), published.unet.entries),
    Layout("unet", ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"), _as_named),
    Layout("mmdit", ("joint_blocks.0.x_block.attn.qkv.weight",), published.mmdit.entries),
    Layout(
        "mmdit",
        ("pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
        _as_named,
    ),
    Layout(
        "flux", ("img_in.weight", "double_blocks.0.img_attn.qkv.weight"), published.flux.entries
    ),
    Layout("flux", ("x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"), _as_named),
    Layout("vae", ("decoder.mid.block_1.norm1.weight",), published.vae.entries),
    Layout("vae", ("decoder.mid_block.resnets.0.norm1.weight",), _as_named),
    Layout(
        "clip", ("positional_embedding", "token_embedding.weight"), published.text.open_clip_entries
    ),
    Layout("clip", (f"text_model.{_TOKENS}",), _as_named),
    Layout("clip", (_TOKENS, "final_layer_norm.weight"), _as_named),
    Layout("t5", ("encoder.block.0.layer.0.SelfAttention.q.weight",), _as_named),
)

# Where a file that holds several networks keeps each, and which text encoder that is.
PREFIXES: Mapping[str, TokenizerName | None] = {
    "model.diffusion_model.": None,
    "diffusion_model.": None,
    "first_stage_model.": None,
    "vae.": None,
    "conditioner.embedders.0.transformer.": "clip-l",
    "conditioner.embedders.1.model.": "clip-g",
    "text_encoders.clip_l.transformer.": "clip-l",
    "text_encoders.clip_g.transformer.": "clip-g",
    "text_encoders.t5xxl.transformer.": "t5",
}
PREFIX = re.compile("|".join(re.escape(prefix) for prefix in PREFIXES))

MOST = 10_000  # tensors; the largest of these files have under 3000

# Empty tensors that say how an SDXL was trained, not what it computes.
V_PREDICTION, ZERO_SNR = MARKERS = ("v_pred", "ztsnr")

# Saved with a network but no part of it.
BESIDE = re.compile(r"loss\..*|attn_mask|logit_scale|.*\.position_ids")


@dataclass(frozen=True)
class Contents:
    """The networks of a file, and which of `MARKERS` it has."""

    file: Path
    networks: tuple[Network, ...]
    markers: frozenset[str]


def recognise(file: Path) -> Contents:
    """Read a file's header and tell what it holds.

    Raises `DamagedWeightsError` or `PickleError` for what is no safetensors file, and
    `CheckpointError` for what is known and cannot be exported, or not known at all.
    """
    tensors = read_headers([file])
    if len(tensors) > MOST:
        raise DamagedWeightsError(file, got=f"{len(tensors)} tensors", expected=f"at most {MOST}")
    refuse_keys(file, tensors)
    groups = _groups(tensors)
    rest = groups.pop("", {})
    if not groups or _layout(rest) is not None:
        groups[""] = rest
    elif rest:
        log.info("%s: %d tensors belong to no network", file, len(rest))
    networks = [_network(file, prefix, group) for prefix, group in groups.items()]
    return Contents(file, tuple(networks), frozenset(MARKERS) & tensors.keys())


def _groups(tensors: Tensors) -> dict[str, dict[str, StoredTensor]]:
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        match = PREFIX.match(name)
        prefix = match[0] if match else ""
        end = name[len(prefix) :]
        if end not in MARKERS and not BESIDE.fullmatch(end):
            groups.setdefault(prefix, {})[end] = tensor
    return groups


def _network(file: Path, prefix: str, group: Tensors) -> Network:
    layout = _layout(group)
    if layout is None:
        raise _unknown(file, prefix, group)
    tensors = translated(group, layout.entries(group))
    return Network(layout.kind, tensors, file, PREFIXES.get(prefix))


def _layout(keys: Tensors) -> Layout | None:
    return next((each for each in LAYOUTS if all(key in keys for key in each.signature)), None)


def published_model(denoiser: Network) -> Model:
    """The published model nearest to a denoiser, which settles what its shapes do not say."""
    names = denoiser.tensors
    if denoiser.kind == "unet":
        return "sdxl-base"
    if denoiser.kind == "flux":
        guided = "time_text_embed.guidance_embedder.linear_1.weight" in names
        return "flux-dev" if guided else "flux-schnell"
    if "transformer_blocks.0.attn.norm_q.weight" not in names:
        return "sd3-medium"
    dual = any(".attn2." in name for name in names)
    return "sd3.5-medium" if dual else "sd3.5-large"


def _unknown(file: Path, prefix: str, group: Tensors) -> CheckpointError:
    keys = ", ".join(short(prefix + key) for key in sorted(group)[:3])
    return CheckpointError(
        file,
        got=f"the keys {keys}, ... of no known network" if group else "no tensors",
        expected="the keys of SDXL, SD3, SD3.5 or Flux.1, their VAEs or their text encoders",
    )
