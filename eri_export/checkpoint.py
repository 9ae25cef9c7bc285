"""An opened checkpoint, whatever its layout: family, configs, and where each weight lies.

Nothing is loaded. A safetensors header names every tensor with its type, shape and byte range;
that is all that tracing needs, and the bytes are read once, when the bundle's own file is written.
`eri_export.sources` opens folders, files and Hub ids into these types.
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

from eri_export.stored import StoredTensor
from eri_runtime.spec import Family

Config = Mapping[str, Any]
Tensors = Mapping[str, StoredTensor]

# component, as diffusers' folders name it -> the class it is
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
    """One network of a checkpoint: its class, its config, and its tensors by diffusers' names.

    `origin` is the folder or file it comes from, for messages.
    """

    name: str
    class_name: str
    origin: Path
    config: Config
    read: Callable[[], Tensors]

    @cached_property
    def tensors(self) -> Tensors:
        """Every tensor by name; the errors are those of whoever reads this layout."""
        return self.read()

    @property
    def parameters(self) -> int:
        """Numbers in all of its tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint.

    `components` holds what has weights, `configs` the config of every part of the family that is
    known, `tokenizers` a folder for each text encoder, `index` the pipeline's own settings.
    """

    root: Path
    layout: str
    family: Family
    index: Config
    components: Mapping[str, Component]
    configs: Mapping[str, Config]
    tokenizers: Mapping[str, Path]
    scheduler: Config

    @property
    def denoiser(self) -> Component:
        """The UNet or the transformer."""
        return self.components[DENOISERS[self.family]]

    def digest(self) -> str:
        """sha256 (hex) over the configs and the weight files' headers and sizes."""
        sha = hashlib.sha256()
        for blob in self._identity():
            sha.update(len(blob).to_bytes(8, "little") + blob)
        return sha.hexdigest()

    def _identity(self) -> Iterator[bytes]:
        yield json.dumps([self.index, self.scheduler], sort_keys=True).encode()
        for component in self.components.values():
            yield json.dumps([component.name, component.config], sort_keys=True).encode()
            tensors = component.tensors.values()
            files = {span.file for tensor in tensors for span in tensor.spans}
            yield json.dumps(sorted([file.name, file.stat().st_size] for file in files)).encode()
            for tensor in tensors:
                spans = [[span.file.name, span.start, span.nbytes] for span in tensor.spans]
                yield json.dumps([tensor.name, tensor.dtype, tensor.shape, spans]).encode()
