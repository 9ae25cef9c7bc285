"""An opened checkpoint of any layout: its family, its configs, and where each weight is stored.

No weight is loaded. A safetensors header gives the type, shape and byte range of every tensor;
tracing needs nothing more. The bytes are read once, when the bundle's weights file is written.
`eri_export.checkpoints.sources` opens folders, files and Hub ids into these types.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eri_export.checkpoints.stored_tensors import StoredTensor
from eri_runtime.bundle import Family

Config = Mapping[str, Any]
Tensors = Mapping[str, StoredTensor]

# component, by the name of its diffusers folder -> its class
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
DENOISERS: Mapping[Family, str] = {"sdxl": "unet", "sd35": "transformer", "flux": "transformer"}


@dataclass(frozen=True)
class Component:
    """One network of a checkpoint.

    Attributes:
        name: The name of its diffusers folder, such as "unet" or "text_encoder_2".
        class_name: Its class in diffusers or transformers.
        origin: The folder or file it comes from, for error messages.
        config: Its config.
        read: Returns its tensors by diffusers' names, from the headers of its files.
    """

    name: str
    class_name: str
    origin: Path
    config: Config
    read: Callable[[], Tensors]

    @cached_property
    def tensors(self) -> Tensors:
        """Every tensor by name, read once; raises the errors of `read`."""
        return self.read()

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint, which `open_checkpoint` returns.

    Attributes:
        root: The folder or file it was opened from.
        layout: "diffusers folder" or "single file".
        family: "sdxl", "sd35" or "flux".
        index: The pipeline's own settings, from `model_index.json`.
        components: The networks that have weights, by the names of their diffusers folders.
        configs: The config of every known part of the family, also of parts without weights.
        tokenizers: A tokenizer's folder for each text encoder.
        scheduler: The scheduler's config.
        scheduler_file: The file that it is from, for messages; None: the checkpoint's own.
        steps_and_guidance: Steps and guidance scale of a call that names none; None: those of the
            family's pipeline in diffusers.
    """

    root: Path
    layout: str
    family: Family
    index: Config
    components: Mapping[str, Component]
    configs: Mapping[str, Config]
    tokenizers: Mapping[str, Path]
    scheduler: Config
    scheduler_file: Path | None = None
    steps_and_guidance: tuple[int, float] | None = None

    @property
    def denoiser(self) -> Component:
        """The UNet or the transformer."""
        return self.components[DENOISERS[self.family]]

    def digest(self) -> str:
        """Hashes the configs and the headers and sizes of the weight files.

        Returns:
            A sha256 in hexadecimal, which the manifest keeps as the bundle's source.
        """
        sha = hashlib.sha256()
        for blob in self._identity():
            sha.update(len(blob).to_bytes(8, "little") + blob)
        return sha.hexdigest()

    def _identity(self) -> Iterator[bytes]:
        yield json.dumps([self.index, self.scheduler], sort_keys=True).encode()
        if self.steps_and_guidance is not None:
            yield json.dumps(self.steps_and_guidance).encode()
        for component in self.components.values():
            yield json.dumps([component.name, component.config], sort_keys=True).encode()
            tensors = component.tensors.values()
            files = {span.file for tensor in tensors for span in tensor.spans}
            yield json.dumps(sorted([file.name, file.stat().st_size] for file in files)).encode()
            for tensor in tensors:
                spans = [[span.file.name, span.start, span.nbytes] for span in tensor.spans]
                yield json.dumps([tensor.name, tensor.stored_as, tensor.shape, spans]).encode()
