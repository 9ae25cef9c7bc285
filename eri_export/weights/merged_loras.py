"""Merges LoRAs into a checkpoint's weights as they are read, so all later stages see one model.

Each weight is merged when it is read, one at a time, in float32, and rounded once to the type it is
exported in. The PyTorch reference reads the same merged weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from eri_export.checkpoints import DENOISERS, Checkpoint, Component, StoredTensor, Tensors
from eri_runtime.bundle import BakedLora, Bundle, sha256
from eri_runtime.checks import finite
from eri_runtime.weights import Adapter, adapters, lora_files, merged_weight, read_lora

Lora = tuple[str | Path, float]  # a file or folder, and its scale
Changes = Mapping[str, Mapping[str, Sequence[tuple[Adapter, float]]]]


@dataclass(frozen=True, kw_only=True)
class MergedTensor(StoredTensor):
    """A tensor with LoRAs merged in; its spans are those of `base`, the tensor without them."""

    base: StoredTensor
    changes: tuple[tuple[Adapter, float], ...]

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yields all values as one flat float32 tensor; raises `NonFiniteError` for an overflow."""
        parts = [chunk.to(torch.float32) for chunk in self.base.chunks()]
        values = torch.cat(parts).view(self.shape).numpy()
        yield torch.from_numpy(merged_weight(self.name, values, self.changes)).view(-1)


def merge_loras(checkpoint: Checkpoint, loras: Sequence[Lora], partial: bool = False) -> Checkpoint:
    """Returns the checkpoint with LoRAs merged in; raises `LoraError` for one that does not fit.

    With `partial`, keys that match no weight are logged instead.
    """
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
        by_component = adapters(read_lora(file), checkpoint.family, shapes, partial)
        for component, weights in by_component.items():
            for name, own in weights.items():
                changed = changes.setdefault(component, {}).setdefault(name, [])
                changed.extend((each, strength) for each in own)
    return replace(
        checkpoint,
        components={
            name: _merge(part, changes.get(_component(checkpoint, name), {}))
            for name, part in checkpoint.components.items()
        },
    )


def with_merged_loras(bundle: Bundle, loras: Sequence[Lora]) -> Bundle:
    """Returns the bundle with the LoRAs' files in its manifest and in its source's digest.

    `loras` are files with their scales.
    """
    if not loras:
        return bundle
    baked, lines = [], ""
    for path, scale in loras:
        file, *configs = lora_files(path)
        baked.append(BakedLora(file=file.name, sha256=sha256(file), scale=float(scale)))
        lines += " ".join([baked[-1].sha256, *map(sha256, configs), f"{float(scale)}\n"])
    digest = hashlib.sha256(f"{bundle.source_digest}\n{lines}".encode()).hexdigest()
    return replace(bundle, baked=tuple(baked), source_digest=digest)


def _component(checkpoint: Checkpoint, name: str) -> str:
    """Returns the bundle's name of a checkpoint's component."""
    return "denoiser" if name == DENOISERS[checkpoint.family] else name


def _merge(part: Component, changes: Mapping[str, list[tuple[Adapter, float]]]) -> Component:
    if not changes:
        return part

    def read() -> Tensors:
        merged = {name: _merged_tensor(part.tensors[name], own) for name, own in changes.items()}
        return {**part.tensors, **merged}

    return replace(part, read=read)


def _merged_tensor(base: StoredTensor, changes: Sequence[tuple[Adapter, float]]) -> MergedTensor:
    stored = {field.name: getattr(base, field.name) for field in fields(StoredTensor)}
    return MergedTensor(**stored, base=base, changes=tuple(changes))
