"""`eri generate --prompts`: generates the prompts of a file into a folder, and resumes a run."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.ignored_options import check_for_bundle
from eri_runtime.commands.memory_options import memory_keywords
from eri_runtime.commands.output import Output
from eri_runtime.commands.subcommand import parse_loras
from eri_runtime.errors import EriError, UsageError

if TYPE_CHECKING:
    from eri_runtime.batch import Line
    from eri_runtime.pipeline import Pipeline

log = logging.getLogger(__name__)
SHOWN = 8  # lines that failed in the last message
ONE_PROMPT_ONLY = ("preview", "also")  # options without --prompts


def generate_many(options: argparse.Namespace, output: Output) -> None:
    """Generates the images that the folder lacks, prints their names, and a count at the end."""
    _check_options(options)
    output.note_opening(options.bundle)
    from eri_runtime.batch import Run, check_batch_size, draw_batches, make_entries, read_prompts
    from eri_runtime.commands.generate_options import call_keywords
    from eri_runtime.pipeline import load
    from eri_runtime.request import assign_seeds, first_seed

    first_seed(options.seed)
    lines = read_prompts(options.prompts)
    failures = _Failures(lines, options.prompts)
    memory = memory_keywords(options)
    words = {"threads": options.threads, "verify": options.verify, **memory}
    words["cache"] = options.keep_compiled
    seeds: dict[Path, int] = {}
    with load(options.bundle, options.backend, **words) as pipe, output.progress() as advance:
        check_for_bundle(options, pipe.bundle)
        size = check_batch_size(pipe.bundle, options.batch)
        for file in options.textual_inversion:
            pipe.load_textual_inversion(file)
        loras = parse_loras(options.lora)
        pipe.set_loras(loras, partial=options.lora_partial)
        jobs, shared = _complete_jobs(pipe, lines, options.negative, call_keywords(options))
        with Run(options.output, pipe.bundle, options.seed) as run:
            words = {**shared, "vae_tile": memory["memory"].mode.vae.tile}
            words |= _picture_hashes(options)
            about = _image_inputs(pipe, loras, options.textual_inversion, words)
            entries = make_entries(assign_seeds(jobs, run.seed), about)
            pending = run.resume(entries, force=options.force)
            kept = done = len(entries) - len(pending)
            advance("images", done, len(entries))
            jobs = [entry.job for entry in entries]
            drawn = draw_batches(pipe, jobs, pending, size, shared, "pil", failures.add)
            for sample in drawn:
                path = run.add(entries[sample.index], sample.image, sample.parameters)
                done += 1
                advance("images", done, len(entries))
                seeds[path] = sample.seed
                output.say(f"{path}  seed {sample.seed}")
    output.say(f"{options.output}  {done - kept} done, {kept} kept")
    output.finish(
        bundle=options.bundle,
        folder=options.output,
        files=[*seeds],
        seeds=[*seeds.values()],
        kept=kept,
        failed=failures.places,
    )
    failures.check()


class _Failures:
    """The lines of a file whose jobs failed.

    Args:
        lines: The lines of the file.
        file: The file.

    Attributes:
        places: The lines that failed.
    """

    def __init__(self, lines: Sequence[Line], file: Path) -> None:
        self._places, self._file = [place for place, _ in lines], file
        self.places: list[str] = []

    def add(self, index: int, error: EriError) -> None:
        """Adds the job `index`, and logs its error."""
        self.places.append(self._places[index])
        log.warning("%s: %s", self._places[index], error)

    def check(self) -> None:
        """Raises `EriError`, naming the lines, if any job failed."""
        if not self.places:
            return
        got = f"no image of {', '.join(self.places[:SHOWN])}"
        more = len(self.places) - SHOWN
        got += f" and {more} more" if more > 0 else ""
        fix = "change these lines; the next run draws only what is missing"
        raise EriError(self._file, got=got, expected="an image of every line", fix=fix)


def _check_options(options: argparse.Namespace) -> None:
    """Raises `UsageError` for options that are missing, invalid or not for `--prompts`."""
    for name in ONE_PROMPT_ONLY:
        if getattr(options, name) not in (None, []):
            fix = "leave it out, or give one PROMPT"
            raise UsageError(f"--{name}", got="it with --prompts", expected="one of them", fix=fix)
    if options.output is None:
        raise UsageError("--output", got="none", expected="a folder for the images of --prompts")


def _complete_jobs(
    pipe: Pipeline,
    lines: Sequence[Line],
    negative: str | None,
    words: Mapping[str, Any],
) -> tuple[list[Any], dict[str, Any]]:
    """Returns the completed jobs of the file, and the keywords that they share.

    A line of the file overrides the command's options.
    """
    from eri_runtime.batch import (
        JOB_KEYWORDS,
        SHARED_JOB_KEYWORDS,
        check_shared_words,
        complete_jobs,
    )
    from eri_runtime.request import Job

    settings = {name: value for name, value in words.items() if name in JOB_KEYWORDS}
    defaults = Job("", negative_prompt=negative, **settings)
    shared = check_shared_words(
        {name: value for name, value in words.items() if name in SHARED_JOB_KEYWORDS}
    )
    places, jobs = zip(*lines, strict=True)
    return complete_jobs(pipe, jobs, defaults, shared, places), shared


def _picture_hashes(options: argparse.Namespace) -> dict[str, str]:
    """Returns the sha256 of the files of `--image` and `--mask`, of those that are given."""
    from eri_runtime.bundle import sha256

    files = {"image": options.image, "mask": options.mask}
    return {name: sha256(path) for name, path in files.items() if path is not None}


def _image_inputs(
    pipe: Pipeline,
    loras: Mapping[str | Path, float],
    inversions: Sequence[str],
    shared: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what decides the images in addition to their jobs: weights, LoRAs and keywords.

    The backend is not included, so that a run can be resumed with another one.
    """
    from eri_runtime.batch import weight_hashes
    from eri_runtime.bundle import sha256
    from eri_runtime.weights import lora_files

    files = [(*map(sha256, lora_files(path)), scale) for path, scale in loras.items()]
    about = {"weights": weight_hashes(pipe.bundle), "loras": files, "words": shared}
    tokens = [(sha256(Path(file)), Path(file).stem) for file in inversions]
    return {**about, "textual_inversions": tokens} if tokens else about
