"""Assigns networks found in files to the components of a pipeline, each with its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from eri_export.checkpoints.checkpoint import DENOISERS, PARTS, Component, Config
from eri_export.checkpoints.config_from_shapes.shapes import size
from eri_export.checkpoints.config_from_shapes.text import clip_width, with_identity_projection
from eri_export.checkpoints.shipped_configs import TOKENIZERS, TokenizerName
from eri_export.checkpoints.sources.config_files import with_defaults
from eri_export.checkpoints.sources.detect_networks import FAMILY_OF, READERS, Network
from eri_runtime.bundle import Family
from eri_runtime.errors import CheckpointError

PROJECTED = "CLIPTextModelWithProjection"
PROJECTION = "text_projection.weight"
PICTURES = "vision_model."  # the other half of a whole CLIP


def encoders(family: Family) -> dict[str, TokenizerName]:
    """Returns the text encoders of a family by the names of their folders."""
    return {
        name.replace("tokenizer", "text_encoder"): of for name, of in TOKENIZERS[family].items()
    }


def assign_components(
    origin: Path, family: Family, networks: Iterable[Network], configs: Mapping[str, Config]
) -> dict[str, Network]:
    """Returns the networks by component name, without those that the family does not have.

    A CLIP is identified by its prefix in the file, else by its width. If several components fit,
    the first free one takes it, in the order of `networks`. Raises `CheckpointError` for a second
    network for one component.
    """
    assigned: dict[str, Network] = {}
    for network in networks:
        candidates = _candidates(family, network, configs)
        free = [name for name in candidates if name not in assigned]
        if free:
            assigned[free[0]] = network
        elif candidates:
            raise CheckpointError(origin, got=f"a second {candidates[0]}", expected="one of each")
    return assigned


def _candidates(family: Family, network: Network, configs: Mapping[str, Config]) -> list[str]:
    """Returns the components of `family` that a network may be."""
    if network.kind in FAMILY_OF:
        return [DENOISERS[family]] if FAMILY_OF[network.kind] == family else []
    if network.kind == "vae":
        return ["vae"]
    known = encoders(family)
    if network.kind == "t5":
        return [name for name, of in known.items() if of == "t5"]
    clips = [name for name, of in known.items() if of != "t5"]
    if network.encoder is not None:
        return [name for name in clips if known[name] == network.encoder]
    width = clip_width(network.tensors)
    return [name for name in clips if configs[name].get("hidden_size") == width]


def make_component(
    family: Family, name: str, network: Network, configs: Mapping[str, Config]
) -> Component:
    """Makes a component of a network.

    Its config is the network's own, or the known one updated by the shapes of its weights.
    """
    class_name, tensors = PARTS[family][name], network.tensors
    own, whole = network.config, any(key.startswith(PICTURES) for key in network.tensors)
    if class_name == PROJECTED and encoders(family)[name] == "clip-l" and (own is None or whole):
        tensors = with_identity_projection(tensors)
    if own is not None and whole and PROJECTION in tensors:
        # the text model's config need not have the width of the whole model's projection
        own = {**own, "projection_dim": size(tensors, PROJECTION, 0)}
    config = with_defaults(class_name, configs[name] if own is None else own)
    if own is None:
        config |= READERS[network.kind](tensors, config)
    return Component(name, class_name, network.origin, config, lambda: tensors)
