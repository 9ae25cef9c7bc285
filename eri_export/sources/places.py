"""Networks found in files put in their places in a pipeline, each with its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from eri_export.checkpoint import DENOISERS, PARTS, Component, Config
from eri_export.shipped import TOKENIZERS, TokenizerName
from eri_export.sources.found import with_defaults
from eri_export.sources.keys.text import clip_width, unprojected
from eri_export.sources.recognise import FAMILY_OF, READERS, Network
from eri_runtime.errors import CheckpointError
from eri_runtime.spec import Family

PROJECTED = "CLIPTextModelWithProjection"


def encoders(family: Family) -> dict[str, TokenizerName]:
    """The text encoders of a family by the names of their folders."""
    return {
        name.replace("tokenizer", "text_encoder"): of for name, of in TOKENIZERS[family].items()
    }


def placed(
    origin: Path, family: Family, networks: Iterable[Network], configs: Mapping[str, Config]
) -> dict[str, Network]:
    """Each network under its part's name; what the family has no place for is left out.

    A CLIP whose place does not say which it is goes by its width, and of several that would fit
    in the order of `networks`. Raises `CheckpointError` for two of one kind.
    """
    found: dict[str, Network] = {}
    for network in networks:
        places = _places(family, network, configs)
        free = [name for name in places if name not in found]
        if free:
            found[free[0]] = network
        elif places:
            raise CheckpointError(origin, got=f"a second {places[0]}", expected="one of each")
    return found


def _places(family: Family, network: Network, configs: Mapping[str, Config]) -> list[str]:
    """The parts of `family` that a network may be."""
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


def part(family: Family, name: str, network: Network, configs: Mapping[str, Config]) -> Component:
    """The component that a network is: its own config, or the known one as its shapes change it."""
    class_name, tensors = PARTS[family][name], network.tensors
    own = network.config
    if class_name == PROJECTED and encoders(family)[name] == "clip-l" and own is None:
        tensors = unprojected(tensors)
    config = with_defaults(class_name, configs[name] if own is None else own)
    if own is None:
        config |= READERS[network.kind](tensors, config)
    return Component(name, class_name, network.origin, config, lambda: tensors)
