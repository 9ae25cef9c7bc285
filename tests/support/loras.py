"""LoRA files made by hand, what eri makes of them, and what diffusers makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.numpy import save_file

from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.weights.lora import adapters, merged_weight

Tensors = dict[str, np.ndarray]

# component of a bundle -> folders a checkpoint may have it in
FOLDERS = {
    "denoiser": ("unet", "transformer"),
    "text_encoder": ("text_encoder",),
    "text_encoder_2": ("text_encoder_2",),
    "text_encoder_3": ("text_encoder_3",),
}


def base_weights(checkpoint: Path) -> dict[str, Mapping[str, np.ndarray]]:
    """The weights of every component that a LoRA can change, lazily."""
    return {
        component: read_tensors(next((checkpoint / folder).glob("*.safetensors")))
        for component, folders in FOLDERS.items()
        for folder in folders
        if (checkpoint / folder).is_dir()
    }


def ours(checkpoint: Path, family: str, lora, scale: float = 1.0) -> dict[str, Tensors]:
    """Every component with a LoRA merged in by eri."""
    base = base_weights(checkpoint)
    shapes = {part: {name: each[name].shape for name in each} for part, each in base.items()}
    found = adapters(lora, family, shapes)
    return {
        part: {
            name: merged_weight(
                name, each[name], [(one, scale) for one in found.get(part, {}).get(name, ())]
            )
            for name in each
        }
        for part, each in base.items()
    }


def theirs(checkpoint: Path, folder: Path, lora, scale: float = 1.0) -> dict[str, Tensors]:
    """The same by diffusers: the LoRA loaded from a file and fused."""
    file = folder / "theirs.safetensors"
    save_file(dict(lora), file, dict(getattr(lora, "metadata", {}) or {}) or None)
    pipeline = DiffusionPipeline.from_pretrained(checkpoint)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(components=pipeline._lora_loadable_modules, lora_scale=scale)
    pipeline.unload_lora_weights()
    merged = {}
    for component, folders in FOLDERS.items():
        for folder_name in folders:
            module = getattr(pipeline, folder_name, None)
            if module is not None:
                merged[component] = {n: p.numpy() for n, p in module.state_dict().items()}
    return merged


def assert_same(merged: Mapping[str, Tensors], expected: Mapping[str, Tensors]) -> None:
    """Relative error of every weight, against the largest number of it, at most 1e-5."""
    for component, weights in merged.items():
        for name, value in weights.items():
            target = expected[component].get(name)
            if target is None:  # transformers 5 has no `text_model.` around some CLIPs
                target = expected[component][name.removeprefix("text_model.")]
            error = np.abs(value - target).max() / np.abs(target).max()
            assert error <= 1e-5, (component, name, error)


def touched(merged: Mapping[str, Tensors], checkpoint: Path) -> dict[str, set[str]]:
    """The names of the weights that are not the checkpoint's any more."""
    base = base_weights(checkpoint)
    return {
        part: {name for name in each if not np.array_equal(each[name], base[part][name])}
        for part, each in merged.items()
    }


def modules(weights: Mapping[str, np.ndarray], *ends: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices and convolutions whose module's name ends so, by that name."""
    return {
        name.removesuffix(".weight"): weights[name].shape
        for name in weights
        if name.endswith(".weight") and weights[name].ndim > 1
        if not ends or name.removesuffix(".weight").endswith(ends)
    }


def low_rank(
    shapes: Mapping[str, tuple[int, ...]],
    name: Callable[[str], str],
    ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    *,
    alpha: float | None = None,
    rank: int = 3,
    seed: int = 0,
) -> Tensors:
    """A plain LoRA of those modules, as a trainer names them and their two factors."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for module, shape in shapes.items():
        down, up = normal(rng, rank, *shape[1:]), normal(rng, shape[0], rank)
        key = name(module)
        made[key + ends[0]] = down
        made[key + ends[1]] = up.reshape(*up.shape, *(1 for _ in shape[2:]))
        if alpha is not None:
            made[f"{key}.alpha"] = np.array(alpha, np.float32)
    return made


KOHYA = (".lora_down.weight", ".lora_up.weight")


def kohya(prefix: str) -> Callable[[str], str]:
    """Names with their dots as underscores."""
    return lambda module: prefix + module.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    """Names with a prefix."""
    return lambda module: prefix + module


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return rng.normal(size=shape).astype(np.float32)


def joined(*parts: Tensors) -> Tensors:
    """Several files as one, with no key in two."""
    whole: Tensors = {}
    for part in parts:
        assert not whole.keys() & part.keys()
        whole |= part
    return whole


def as_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same as torch's."""
    return {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}


def as_numpy(tensors: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
    """The same as NumPy's."""
    return {name: value.detach().numpy().copy() for name, value in tensors}
