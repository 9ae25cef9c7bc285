"""Detects the networks in a safetensors or GGUF file by its keys and shapes, not by its name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes import flux, mmdit, text, unet, vae
from eri_export.checkpoints.config_from_shapes.shapes import rename_tensors
from eri_export.checkpoints.quantised import dequantised, read_file
from eri_export.checkpoints.shipped_configs import Model, TokenizerName
from eri_export.checkpoints.sources.edm_marks import EDM_MARKS, EdmSettings, edm_settings
from eri_export.checkpoints.sources.unsupported_files import refuse_keys
from eri_export.checkpoints.stored_tensors import StoredTensor
from eri_runtime.bundle import Family
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short
from eri_runtime.weights import Entry, published_keys

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
    """A network found in a file or folder: its tensors by diffusers' names.

    `encoder` is which text encoder it is, if its prefix in the file says so. `config` and
    `tokenizer` are its own, if its folder has them.
    """

    kind: Kind
    tensors: Tensors
    origin: Path
    encoder: TokenizerName | None = None
    config: Config | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Layout:
    """One way of naming a network's weights.

    A file that has every key of `signature` has this layout; `entries` translates its keys.
    """

    kind: Kind
    signature: tuple[str, ...]
    entries: Callable[[Collection[str]], Iterable[Entry]]


def _as_named(_keys: Collection[str]) -> Iterator[Entry]:
    """Returns no entries: the keys are diffusers' or transformers' names already."""
    return iter(())


_TOKENS = "embeddings.token_embedding.weight"
LAYOUTS = (
    Layout("unet", ("input_blocks.0.0.weight",), published_keys.unet.entries),
    Layout("unet", ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"), _as_named),
    Layout("mmdit", ("joint_blocks.0.x_block.attn.qkv.weight",), published_keys.mmdit.entries),
    Layout(
        "mmdit",
        ("pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
        _as_named,
    ),
    Layout(
        "flux",
        ("img_in.weight", "double_blocks.0.img_attn.qkv.weight"),
        published_keys.flux.entries,
    ),
    Layout("flux", ("x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"), _as_named),
    Layout("vae", ("decoder.mid.block_1.norm1.weight",), published_keys.vae.entries),
    Layout("vae", ("decoder.mid_block.resnets.0.norm1.weight",), _as_named),
    Layout(
        "clip",
        ("positional_embedding", "token_embedding.weight"),
        published_keys.text.open_clip_entries,
    ),
    Layout("clip", (f"text_model.{_TOKENS}",), _as_named),
    Layout("clip", (_TOKENS, "final_layer_norm.weight"), _as_named),
    Layout("t5", ("encoder.block.0.layer.0.SelfAttention.q.weight",), _as_named),
    Layout(
        "t5",
        ("token_embd.weight", "enc.blk.0.attn_rel_b.weight"),
        published_keys.text.llama_t5_entries,
    ),
)

# The prefix of each network in a file that holds several -> which text encoder it is.
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

# Empty tensors that mark how an SDXL was trained.
V_PREDICTION, ZERO_SNR = MARKERS = ("v_pred", "ztsnr")

# Saved with a network but not used by it.
UNUSED = re.compile(r"loss\..*|model_ema\..*|attn_mask|logit_scale|.*\.position_ids")


@dataclass(frozen=True)
class Contents:
    """The networks of a file, which of `MARKERS` it has, and what marks of EDM mean."""

    file: Path
    networks: tuple[Network, ...]
    markers: frozenset[str]
    edm: EdmSettings | None = None


def detect_networks(file: Path) -> Contents:
    """Reads a file's header and returns the networks in it.

    Quantised layers are one tensor each. Raises `DamagedWeightsError` or `PickleError` if it is no
    sound safetensors or GGUF file, and `CheckpointError` for a model that cannot be exported or is
    unknown.
    """
    stored = read_file(file)
    if len(stored) > MOST:
        raise DamagedWeightsError(file, got=f"{len(stored)} tensors", expected=f"at most {MOST}")
    tensors = dequantised(stored)
    refuse_keys(file, tensors)
    groups = _groups(tensors)
    rest = groups.pop("", {})
    if not groups or _layout(rest) is not None:
        groups[""] = rest
    elif rest:
        log.info("%s: %d tensors belong to no network", file, len(rest))
    networks = [_network(file, prefix, group) for prefix, group in groups.items()]
    markers = frozenset(MARKERS) & tensors.keys()
    return Contents(file, tuple(networks), markers, edm_settings(file, tensors))


def _groups(tensors: Tensors) -> dict[str, dict[str, StoredTensor]]:
    """Returns the tensors of each prefix, by their names without it; "" groups the rest."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        match = PREFIX.match(name)
        prefix = match[0] if match else ""
        end = name[len(prefix) :]
        if end not in (*MARKERS, *EDM_MARKS) and not UNUSED.fullmatch(end):
            groups.setdefault(prefix, {})[end] = tensor
    return groups


def _network(file: Path, prefix: str, group: Tensors) -> Network:
    layout = _layout(group)
    if layout is None:
        raise _unknown(file, prefix, group)
    tensors = rename_tensors(group, layout.entries(group))
    return Network(layout.kind, tensors, file, PREFIXES.get(prefix))


def _layout(keys: Tensors) -> Layout | None:
    return next((each for each in LAYOUTS if all(key in keys for key in each.signature)), None)


def published_model(denoiser: Network) -> Model:
    """Returns the published model nearest to a denoiser; its config completes what shapes tell."""
    names = denoiser.tensors
    if denoiser.kind == "unet":
        return "sdxl-base"
    if denoiser.kind == "flux":
        distilled = "time_text_embed.guidance_embedder.linear_1.weight" in names
        return "flux-dev" if distilled else "flux-schnell"
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
