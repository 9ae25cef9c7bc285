"""A diffusers folder, opened: its family, its components' configs, and where each weight lies.

Nothing is loaded. A safetensors header names every tensor with its type, shape and byte range;
that is all that tracing needs, and the bytes are read once, when the bundle's own file is written.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers

from eri_export.stored import StoredTensor, read_headers
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
)
from eri_runtime.spec import Family

INDEX = "model_index.json"
CONFIG = "config.json"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

# A pipeline class fixes the family; others of the same networks (ControlNet, Fill, ...) give the
# denoiser inputs the contract does not have.
FAMILY_OF_PIPELINE: Mapping[str, Family] = {
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd35",
    "StableDiffusion3Img2ImgPipeline": "sd35",
    "FluxPipeline": "flux",
    "FluxImg2ImgPipeline": "flux",
}

# component of the folder -> the classes it may be
PARTS: Mapping[Family, Mapping[str, str]] = {
    "sdxl": {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    "sd35": {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    "flux": {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
}


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint: its class, its config, and its tensors by name."""

    name: str
    class_name: str
    folder: Path
    config: Mapping[str, Any]

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor of every shard, by name.

        Raises `PickleError` for a folder with pickled weights only, `DamagedWeightsError` for a
        file that is truncated or inconsistent, `NotACheckpointError` for no weights at all.
        """
        return read_headers(_weight_files(self.folder))


@dataclass(frozen=True)
class Checkpoint:
    """An opened diffusers folder."""

    root: Path
    family: Family
    index: Mapping[str, Any]
    components: Mapping[str, Component]
    scheduler: Mapping[str, Any]

    @property
    def denoiser(self) -> Component:
        """The UNet or the transformer."""
        return self.components["unet" if self.family == "sdxl" else "transformer"]

    @property
    def tokenizers(self) -> Mapping[str, Path]:
        """Tokenizer folders by name, one for each text encoder."""
        encoders = (name for name in self.components if name.startswith("text_encoder"))
        names = (name.replace("text_encoder", "tokenizer") for name in encoders)
        return {name: _existing(self.root / name, "a tokenizer folder") for name in names}

    def digest(self) -> str:
        """sha256 (hex) over the configs and the weight files' headers and sizes."""
        sha = hashlib.sha256()
        for blob in self._identity():
            sha.update(len(blob).to_bytes(8, "little") + blob)
        return sha.hexdigest()

    def _identity(self) -> Iterator[bytes]:
        yield json.dumps([self.index, self.scheduler], sort_keys=True).encode()
        for component in self.components.values():
            config = read_json(component.folder / CONFIG)
            yield json.dumps([component.name, config], sort_keys=True).encode()
            for file in sorted({tensor.file for tensor in component.tensors.values()}):
                mine = (t for t in component.tensors.values() if t.file == file)
                tensors = {t.name: [t.dtype, t.shape, t.start] for t in mine}
                yield json.dumps([file.name, file.stat().st_size, tensors]).encode()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a diffusers folder without reading a weight.

    Raises `NotACheckpointError`, `PickleError` or `CheckpointError`, each naming the offender.
    """
    root = Path(path)
    _refuse_file(root)
    index = read_json(root / INDEX)
    family = _family(root, index)
    parts = PARTS[family]
    return Checkpoint(
        root=root,
        family=family,
        index=index,
        components={name: _component(root, index, name, parts[name]) for name in parts},
        scheduler=read_json(_existing(root / "scheduler" / "scheduler_config.json", "a scheduler")),
    )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; raises `NotACheckpointError` for anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotACheckpointError(file, got=error, expected="a JSON file") from error
    if not isinstance(value, dict):
        raise NotACheckpointError(file, got=type(value).__name__, expected="a JSON object")
    return value


def with_defaults(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what it leaves out, by the arguments of diffusers' class `kind`."""
    arguments = inspect.signature(kind).parameters.values()
    given = {each.name: each.default for each in arguments if each.default is not each.empty}
    return {**given, **config}


def _refuse_file(root: Path) -> None:
    if root.suffix.lower() in PICKLES:
        raise _pickle(root)
    if not root.exists():
        raise NotACheckpointError(root, got="no such path", expected="a diffusers folder")
    if root.is_file():
        raise NotACheckpointError(
            root,
            got="a single file",
            expected="a diffusers folder",
            fix="save it with `pipeline.save_pretrained`; single files come in a later version",
        )
    if not (root / INDEX).is_file():
        found = sorted(child.name for child in root.iterdir())[:8]
        raise NotACheckpointError(
            root, got=f"a folder holding {found}", expected=f"a diffusers folder with {INDEX}"
        )


def _pickle(path: Path) -> PickleError:
    return PickleError(
        path,
        got="pickled weights, which may run code when they are read",
        expected="safetensors",
        fix="load it where you trust it and save with `safe_serialization=True`",
    )


def _family(root: Path, index: Mapping[str, Any]) -> Family:
    name = str(index.get("_class_name"))
    if name not in FAMILY_OF_PIPELINE:
        raise CheckpointError(
            root / INDEX,
            got=f"pipeline class {name!r}",
            expected=f"one of {', '.join(FAMILY_OF_PIPELINE)}",
        )
    return FAMILY_OF_PIPELINE[name]


def _component(root: Path, index: Mapping[str, Any], name: str, class_name: str) -> Component:
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != class_name:
        raise CheckpointError(
            f"{root / INDEX}: component {name!r}",
            got="none" if found is None else found,
            expected=class_name,
            fix="every component of the family is exported; save the whole pipeline",
        )
    folder = _existing(root / name, f"the folder of component {name!r}")
    config = read_json(folder / CONFIG)
    if not name.startswith("text_encoder"):  # transformers' configs fill in their own
        config = with_defaults(getattr(diffusers, class_name), config)
    return Component(name, class_name, folder, config)


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise NotACheckpointError(path, got="no such path", expected=what)
    return path


def _shard(index: Path, name: str) -> Path:
    """A shard beside its index; `DamagedWeightsError` for one that would lie elsewhere."""
    if Path(name).name != name:
        raise DamagedWeightsError(index, got=name, expected="the name of a file beside the index")
    return _existing(index.parent / name, "a shard that the index names")


def _weight_files(folder: Path) -> list[Path]:
    """The shards an index names, or the single file; diffusers' and transformers' names."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            return [_shard(index, shard) for shard in shards]
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
    pickles = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES]
    if pickles:
        raise _pickle(pickles[0])
    raise NotACheckpointError(folder, got="no weights", expected="a .safetensors file")
