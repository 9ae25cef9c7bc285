"""LoRAs merged into a checkpoint's weights as they are read, so that all later steps see one model.

A weight is merged when its bytes are asked for, one at a time, in float32, and rounded once to the
type it is exported in. PyTorch's side of the gate reads the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from eri_export.checkpoint import DENOISERS, Checkpoint, Component, Tensors
from eri_export.stored import StoredTensor
from eri_runtime.checks import finite
from eri_runtime.lora import Adapter, adapters, merged_weight
from eri_runtime.spec import BakedLora, Bundle
from eri_runtime.tensors import read_tensors

Lora = tuple[str | Path, float]  # a file and its scale
Changes = Mapping[str, Mapping[str, Sequence[tuple[Adapter, float]]]]


@dataclass(frozen=True, kw_only=True)
class Baked(StoredTensor):
    """A tensor with changes merged in; its spans are those of the tensor without."""

    base: StoredTensor
    changes: tuple[tuple[Adapter, float], ...]

    def chunks(self) -> Iterator[torch.Tensor]:
        """The values, flat, as one float32 tensor; raises `NonFiniteError` for an overflow."""
        parts = [chunk.to(torch.float32) for chunk in self.base.chunks()]
        values = torch.cat(parts).view(self.shape).numpy()
        yield torch.from_numpy(merged_weight(self.name, values, self.changes)).view(-1)


def bake(checkpoint: Checkpoint, loras: Sequence[Lora]) -> Checkpoint:
    """The checkpoint with these LoRAs in it; raises `LoraError` for one that does not fit."""
    if not loras:
        return checkpoint
    shapes = {
        _component(checkpoint, name): {key: each.shape for key, each in part.tensors.items()}
        for name, part in checkpoint.components.items()
        if name != "vae"
    }
    changes: dict[str, dict[str, list[tuple[Adapter, float]]]] = {}
    for file, scale in loras:
        strength = finite(f"scale of {file}", scale)
        found = adapters(read_tensors(file), checkpoint.family, shapes)
        for component, weights in found.items():
            for name, own in weights.items():
                changed = changes.setdefault(component, {}).setdefault(name, [])
                changed.extend((each, strength) for each in own)
    return replace(
        checkpoint,
        components={
            name: _baked(part, changes.get(_component(checkpoint, name), {}))
            for name, part in checkpoint.components.items()
        },
    )


def with_baked(bundle: Bundle, loras: Sequence[Lora]) -> Bundle:
    """The bundle of a checkpoint that says these LoRAs are in it; its digest is another one."""
    if not loras:
        return bundle
    baked = tuple(
        BakedLora(file=Path(file).name, sha256=_sha256(Path(file)), scale=float(scale))
        for file, scale in loras
    )
    told = "".join(f"{each.sha256} {each.scale}\n" for each in baked)
    digest = hashlib.sha256(f"{bundle.source_digest}\n{told}".encode()).hexdigest()
    return replace(bundle, baked=baked, source_digest=digest)


def _component(checkpoint: Checkpoint, name: str) -> str:
    """The name a bundle has for a part of a checkpoint."""
    return "denoiser" if name == DENOISERS[checkpoint.family] else name


def _baked(part: Component, changes: Mapping[str, list[tuple[Adapter, float]]]) -> Component:
    if not changes:
        return part

    def read() -> Tensors:
        merged = {name: _merged(part.tensors[name], own) for name, own in changes.items()}
        return {**part.tensors, **merged}

    return replace(part, read=read)


def _merged(base: StoredTensor, changes: Sequence[tuple[Adapter, float]]) -> Baked:
    place = {field.name: getattr(base, field.name) for field in fields(StoredTensor)}
    return Baked(**place, base=base, changes=tuple(changes))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
