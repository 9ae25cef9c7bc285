"""Adds a VAE and text encoders from other files, which complete or replace a checkpoint's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from eri_export.checkpoints import shipped_configs
from eri_export.checkpoints.checkpoint import PARTS, Checkpoint, Component, Config
from eri_export.checkpoints.sources.assign_components import (
    assign_components,
    encoders,
    make_component,
)
from eri_export.checkpoints.sources.config_files import PICKLES, read_json, require_exists
from eri_export.checkpoints.sources.detect_networks import Kind, Network, detect_networks
from eri_export.checkpoints.sources.folder import CONFIG, INDEX, open_part
from eri_runtime.bundle import pickle_error
from eri_runtime.errors import CheckpointError, NotACheckpointError, short

# a folder's network by its config: diffusers' class name or transformers' model type
KINDS: Mapping[str, Kind] = {
    "AutoencoderKL": "vae",
    "clip_text_model": "clip",
    "clip": "clip",
    "t5": "t5",
}
CLASSES: Mapping[Kind, str] = {
    "vae": "AutoencoderKL",
    "clip": "CLIPTextModelWithProjection",
    "t5": "T5EncoderModel",
}
ENCODERS: tuple[Kind, ...] = ("clip", "t5")


def with_extras(
    checkpoint: Checkpoint, *, vae: Path | None, text_encoders: Sequence[Path]
) -> Checkpoint:
    """Returns the checkpoint with the networks of these files and folders.

    Raises `NotACheckpointError` or `CheckpointError` for a path without a network it can use.
    """
    family = checkpoint.family
    configs = {**shipped_configs.configs(shipped_configs.TYPICAL[family]), **checkpoint.configs}
    networks = [*_open(vae, ("vae",))] if vae else []
    for path in text_encoders:
        opened = [*_open(path, ENCODERS)]
        if not assign_components(path, family, opened, configs):
            raise _unusable(path, opened, encoders(family).values())
        networks += opened
    assigned = assign_components(checkpoint.root, family, networks, configs)
    supplied = {
        name: make_component(family, name, network, configs) for name, network in assigned.items()
    }
    components = {**checkpoint.components, **supplied}
    tokenizers = {
        name.replace("text_encoder", "tokenizer"): network.tokenizer
        for name, network in assigned.items()
        if network.tokenizer
    }
    return dataclasses.replace(
        checkpoint,
        components={name: components[name] for name in PARTS[family] if name in components},
        configs={**checkpoint.configs, **{name: each.config for name, each in supplied.items()}},
        tokenizers={**tokenizers, **checkpoint.tokenizers},
    )


def with_tokenizers(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with a published tokenizer for every text encoder that has none.

    Raises `CheckpointError` for an encoder with a vocabulary of another size.
    """
    tokenizers = {}
    for name, which in shipped_configs.TOKENIZERS[checkpoint.family].items():
        encoder = name.replace("tokenizer", "text_encoder")
        if encoder in checkpoint.components:
            own = checkpoint.tokenizers.get(name)
            tokenizers[name] = own or _shipped(checkpoint, encoder, which)
    return dataclasses.replace(checkpoint, tokenizers=tokenizers)


def _shipped(checkpoint: Checkpoint, encoder: str, which: shipped_configs.TokenizerName) -> Path:
    component = checkpoint.components[encoder]
    published = shipped_configs.configs(shipped_configs.TYPICAL[checkpoint.family])[encoder][
        "vocab_size"
    ]
    if component.config["vocab_size"] != published:
        raise CheckpointError(
            f"{component.origin}: {encoder}",
            got=f"{component.config['vocab_size']} tokens and no tokenizer",
            expected=f"the {published} tokens of {which}",
            fix="give the model's own tokenizers with `--config FOLDER`",
        )
    return shipped_configs.tokenizer(which)


def _open(path: Path, kinds: tuple[Kind, ...]) -> Iterator[Network]:
    """Yields the networks of `kinds` in a file or folder; raises `CheckpointError` for none."""
    networks = [*_networks(require_exists(path, f"a {' or '.join(kinds)}"))]
    usable = [network for network in networks if network.kind in kinds]
    if not usable:
        raise _unusable(path, networks, kinds)
    yield from usable


def _networks(path: Path) -> Iterator[Network]:
    """Yields the networks of a file, of a pipeline's folder or of a component's folder."""
    if path.suffix.lower() in PICKLES:
        raise pickle_error(path, path)
    if path.is_file():
        yield from detect_networks(path).networks
    elif (path / INDEX).is_file():
        for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            if (path / name / CONFIG).is_file():
                yield from _component(path / name, path / name.replace("text_encoder", "tokenizer"))
    else:
        yield from _component(path, None)


def _component(folder: Path, tokenizer: Path | None) -> Iterator[Network]:
    """Yields the network of a component's folder, if it is a VAE or a text encoder."""
    if not (folder / CONFIG).is_file():
        raise NotACheckpointError(folder, got=f"no {CONFIG}", expected="a component's folder")
    config = read_json(folder / CONFIG)
    kind = KINDS.get(str(config.get("_class_name", config.get("model_type"))))
    if kind is not None:
        opened = open_part(folder, folder.name, CLASSES[kind])
        own = tokenizer if tokenizer and tokenizer.is_dir() else None
        text = _text_config(opened) if "text_config" in config else opened.config
        yield Network(kind, opened.tensors, folder, config=text, tokenizer=own)


def _text_config(whole: Component) -> Config:
    """Returns the text model's config in that of a CLIP with both of its models."""
    text = whole.config["text_config"]
    if not isinstance(text, dict):
        raise CheckpointError(
            f"{whole.origin}: text_config", got=short(text), expected="the text model's config"
        )
    return text


def _unusable(path: Path, networks: Iterable[Network], kinds: Iterable[str]) -> CheckpointError:
    got = ", ".join(network.kind for network in networks)
    return CheckpointError(path, got=got or "no network", expected=" or ".join(kinds))
