"""Writes trained modules as a diffusers folder with fp16 safetensors weights."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import CLIPTokenizer, T5Tokenizer

from eri_export.embedded import models, train_tokenizers, train_vae
from eri_export.embedded.denoiser import Denoiser, trained_denoiser

KEPT = ("README.md", "LICENSE")


def pack(work: pathlib.Path, target: pathlib.Path) -> None:
    """Replaces the checkpoint folder `target` with the moving averages of the runs in `work`."""
    replace(target, functools.partial(write, build_pipeline(work).to(torch.float16)))


def replace(target: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Replaces the folder `target` with what `write` writes; README and LICENSE stay."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    for name in KEPT:
        if (target / name).is_file():
            shutil.copy2(target / name, partial / name)
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    _swap(partial, target)


def build_pipeline(work: pathlib.Path) -> StableDiffusion3Pipeline:
    """Returns the moving averages of the runs as one float32 pipeline."""
    tokenizers = train_tokenizers.build_tokenizers()
    denoiser = trained_denoiser(work / "denoiser.pt", tokenizers)
    return assembled(denoiser, train_vae.trained_vae(work), tokenizers)


def assembled(
    denoiser: Denoiser, vae: AutoencoderKL, tokenizers: train_tokenizers.Tokenizers
) -> StableDiffusion3Pipeline:
    """Returns the modules as a diffusers pipeline."""
    return StableDiffusion3Pipeline(
        transformer=denoiser.transformer,
        scheduler=models.build_scheduler(),
        vae=vae,
        text_encoder=denoiser.clip_l,
        text_encoder_2=denoiser.clip_g,
        text_encoder_3=denoiser.t5,
        **tokenizer_folders(tokenizers),
    )


def write(pipeline: StableDiffusion3Pipeline, folder: pathlib.Path) -> None:
    """Saves weights, configurations and tokenizers."""
    pipeline.save_pretrained(folder)
    _write_tokenizers(folder)


def tokenizer_folders(
    tokenizers: train_tokenizers.Tokenizers,
) -> dict[str, CLIPTokenizer | T5Tokenizer]:
    """Returns the tokenizers by their names in diffusers."""
    return {
        "tokenizer": tokenizers.clip_l,
        "tokenizer_2": tokenizers.clip_g,
        "tokenizer_3": tokenizers.t5,
    }


def _write_tokenizers(folder: pathlib.Path) -> None:
    """Writes fresh tokenizers, without padding or truncation, in old and new file formats."""
    for name, tokenizer in tokenizer_folders(train_tokenizers.build_tokenizers()).items():
        tokenizer.save_pretrained(folder / name)
        if isinstance(tokenizer, CLIPTokenizer):
            tokenizer.backend_tokenizer.model.save(str(folder / name))
    name_t5(folder, "tokenizer_3")


def name_t5(folder: pathlib.Path, component: str) -> None:
    """Renames the class of T5's tokenizer in the index to the one that older transformers know."""
    index = folder / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    entries[component] = ["transformers", "T5TokenizerFast"]
    index.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _swap(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Moves the folder `partial` to `target`, which is replaced."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
