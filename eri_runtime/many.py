"""`eri generate --prompts`: many prompts from a file, their images into a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eri_runtime.command import parse_lora, say
from eri_runtime.errors import UsageError
from eri_runtime.memory.options import memory_of

if TYPE_CHECKING:
    from eri_runtime.pipelines import Pipeline
    from eri_runtime.prompt_files import Line

ONE_ONLY = ("preview", "image", "mask", "strength", "also")  # options of one prompt


def generate_many(options: argparse.Namespace) -> None:
    """Make what the folder has not, name each file when it is there, and count at the end."""
    from eri_runtime.batch import checked_batch, drawn
    from eri_runtime.generate import make_words
    from eri_runtime.jobs import seeded
    from eri_runtime.pipelines import load
    from eri_runtime.progress import progress_bars
    from eri_runtime.prompt_files import read_prompts
    from eri_runtime.runs import Run, make_entries

    _check(options)
    lines = read_prompts(options.prompts)
    memory = memory_of(options)
    with (
        load(options.bundle, options.backend, threads=options.threads, **memory) as pipe,
        progress_bars() as advance,
    ):
        size = checked_batch(pipe.bundle, options.batch)
        loras = [parse_lora(each) for each in options.lora]
        pipe.set_loras(dict(loras))
        jobs, shared = _complete(pipe, lines, options.negative, make_words(options))
        with Run(options.output, pipe.bundle, options.seed) as run:
            about = _about(pipe, loras, {**shared, "vae_tile": memory["memory"].mode.vae.tile})
            entries = make_entries(seeded(jobs, run.seed), about)
            pending = run.resume(entries)
            kept = done = len(entries) - len(pending)
            advance("images", done, len(entries))
            jobs = [entry.job for entry in entries]
            for sample in drawn(pipe, jobs, pending, size, shared, "pil"):
                path = run.add(entries[sample.index], sample.image, sample.parameters)
                done += 1
                advance("images", done, len(entries))
                say(f"{path}  seed {sample.seed}")
    say(f"{options.output}  {done - kept} done, {kept} kept")


def _check(options: argparse.Namespace) -> None:
    """Raise `UsageError` for options that mean nothing here, that are missing or out of range."""
    from eri_runtime.jobs import first_seed

    first_seed(options.seed)
    for name in ONE_ONLY:
        if getattr(options, name) not in (None, []):
            fix = "leave it out, or give one PROMPT"
            raise UsageError(f"--{name}", got="it with --prompts", expected="one of them", fix=fix)
    if options.output is None:
        raise UsageError("--output", got="none", expected="a folder for the images of --prompts")


def _complete(
    pipe: Pipeline,
    lines: Sequence[Line],
    negative: str | None,
    words: Mapping[str, Any],
) -> tuple[list[Any], dict[str, Any]]:
    """The jobs of the lines over those of the options, and the words that they share."""
    from eri_runtime.batch import OWN, SHARED, checked_words, complete
    from eri_runtime.jobs import Job

    own = {name: value for name, value in words.items() if name in OWN}
    defaults = Job("", negative_prompt=negative, **own)
    shared = checked_words({name: value for name, value in words.items() if name in SHARED})
    places, jobs = zip(*lines, strict=True)
    return complete(pipe, jobs, defaults, shared, places), shared


def _about(
    pipe: Pipeline, loras: Sequence[tuple[str, float]], shared: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the images beside their jobs: weights, LoRAs and shared words, no backend."""
    from pathlib import Path

    from eri_runtime.integrity import sha256
    from eri_runtime.runs import weights_of

    files = [(sha256(Path(path)), scale) for path, scale in loras]
    return {"weights": weights_of(pipe.bundle), "loras": files, "words": shared}
