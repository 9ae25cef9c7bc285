"""A VAE and text encoders from elsewhere, for a checkpoint without them or in place of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from eri_export import shipped
from eri_export.checkpoint import PARTS, Checkpoint
from eri_export.sources.folder import CONFIG, INDEX, open_part
from eri_export.sources.found import PICKLES, existing, pickle_error, read_json
from eri_export.sources.places import encoders, part, placed
from eri_export.sources.recognise import Kind, Network, recognise
from eri_runtime.errors import CheckpointError, NotACheckpointError

# what a folder's config says it is: diffusers' class, transformers' type of model
KINDS: Mapping[str, Kind] = {"AutoencoderKL": "vae", "clip_text_model": "clip", "t5": "t5"}
CLASSES: Mapping[Kind, str] = {
    "vae": "AutoencoderKL",
    "clip": "CLIPTextModelWithProjection",
    "t5": "T5EncoderModel",
}
ENCODERS: tuple[Kind, ...] = ("clip", "t5")


def with_extras(
    checkpoint: Checkpoint, *, vae: Path | None, text_encoders: Sequence[Path]
) -> Checkpoint:
    """`checkpoint` with the networks of these files and folders put in.

    Raises `NotACheckpointError` or `CheckpointError` for one that holds nothing it could take.
    """
    family = checkpoint.family
    configs = {**shipped.configs(shipped.TYPICAL[family]), **checkpoint.configs}
    networks = [*_wanted(vae, ("vae",))] if vae else []
    for path in text_encoders:
        held = [*_wanted(path, ENCODERS)]
        if not placed(path, family, held, configs):
            raise _unwanted(path, held, encoders(family).values())
        networks += held
    found = placed(checkpoint.root, family, networks, configs)
    supplied = {name: part(family, name, network, configs) for name, network in found.items()}
    components = {**checkpoint.components, **supplied}
    tokenizers = {
        name.replace("text_encoder", "tokenizer"): network.tokenizer
        for name, network in found.items()
        if network.tokenizer
    }
    return dataclasses.replace(
        checkpoint,
        components={name: components[name] for name in PARTS[family] if name in components},
        configs={**checkpoint.configs, **{name: each.config for name, each in supplied.items()}},
        tokenizers={**tokenizers, **checkpoint.tokenizers},
    )


def with_tokenizers(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with a published tokenizer for every text encoder that came without one.

    Raises `CheckpointError` for an encoder of another vocabulary.
    """
    tokenizers = {}
    for name, which in shipped.TOKENIZERS[checkpoint.family].items():
        encoder = name.replace("tokenizer", "text_encoder")
        if encoder in checkpoint.components:
            own = checkpoint.tokenizers.get(name)
            tokenizers[name] = own or _shipped(checkpoint, encoder, which)
    return dataclasses.replace(checkpoint, tokenizers=tokenizers)


def _shipped(checkpoint: Checkpoint, encoder: str, which: shipped.TokenizerName) -> Path:
    component = checkpoint.components[encoder]
    published = shipped.configs(shipped.TYPICAL[checkpoint.family])[encoder]["vocab_size"]
    if component.config["vocab_size"] != published:
        raise CheckpointError(
            f"{component.origin}: {encoder}",
            got=f"{component.config['vocab_size']} tokens and no tokenizer",
            expected=f"the {published} tokens of {which}",
            fix="give the model's own tokenizers with `--config FOLDER`",
        )
    return shipped.tokenizer(which)


def _wanted(path: Path, kinds: tuple[Kind, ...]) -> Iterator[Network]:
    """The networks of `kinds` in a file or folder; raises `CheckpointError` for none."""
    held = [*_networks(existing(path, f"a {' or '.join(kinds)}"))]
    wanted = [network for network in held if network.kind in kinds]
    if not wanted:
        raise _unwanted(path, held, kinds)
    yield from wanted


def _networks(path: Path) -> Iterator[Network]:
    if path.suffix.lower() in PICKLES:
        raise pickle_error(path)
    if path.is_file():
        yield from recognise(path).networks
    elif (path / INDEX).is_file():
        for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            if (path / name / CONFIG).is_file():
                yield from _component(path / name, path / name.replace("text_encoder", "tokenizer"))
    else:
        yield from _component(path, None)


def _component(folder: Path, tokenizer: Path | None) -> Iterator[Network]:
    """The network of a component's folder, if it is one of these."""
    if not (folder / CONFIG).is_file():
        raise NotACheckpointError(folder, got=f"no {CONFIG}", expected="a component's folder")
    config = read_json(folder / CONFIG)
    kind = KINDS.get(str(config.get("_class_name", config.get("model_type"))))
    if kind is not None:
        opened = open_part(folder, folder.name, CLASSES[kind])
        own = tokenizer if tokenizer and tokenizer.is_dir() else None
        yield Network(kind, opened.tensors, folder, config=opened.config, tokenizer=own)


def _unwanted(path: Path, held: Iterable[Network], kinds: Iterable[str]) -> CheckpointError:
    got = ", ".join(network.kind for network in held)
    return CheckpointError(path, got=got or "no network", expected=" or ".join(kinds))
