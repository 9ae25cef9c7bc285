"""`eri generate`: generates images from one prompt; `generate_many` handles `--prompts`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.generate_options import add_generate_options, call_keywords
from eri_runtime.commands.memory_options import memory_keywords
from eri_runtime.commands.subcommand import Subparsers, add_command, parse_loras, say
from eri_runtime.errors import UsageError

if TYPE_CHECKING:
    from eri_runtime.pipeline import Pipeline, Result
    from eri_runtime.weights import Scale


def generate_command(commands: Subparsers) -> None:
    """Registers `eri generate`."""
    parser = add_command(commands, "generate", "Generate images from a bundle.", generate)
    add_generate_options(parser)


def generate(options: argparse.Namespace) -> None:
    """Generates images, saves them with their parameters, and prints the names of the files."""
    if (options.prompt is None) == (options.prompts is None):
        got = "neither" if options.prompt is None else "both"
        raise UsageError("PROMPT and --prompts", got=got, expected="one of them")
    if options.prompts is None:
        _generate_one(options)
        return
    from eri_runtime.commands.generate_many import generate_many

    generate_many(options)


def _generate_one(options: argparse.Namespace) -> None:
    """Generates the images of one prompt."""
    from eri_runtime.commands.progress_bars import progress_bars
    from eri_runtime.images import write_png
    from eri_runtime.pipeline import load

    for name, path in (("--output", options.output), ("--preview", options.preview)):
        if path is not None and path.suffix.lower() != ".png":
            raise UsageError(name, got=path, expected="a name that ends in .png")
    prompt = {options.prompt: 1.0, **dict(options.also)} if options.also else options.prompt
    with (
        load(
            options.bundle,
            options.backend,
            threads=options.threads,
            verify=options.verify,
            **memory_keywords(options),
        ) as pipe,
        progress_bars() as advance,
    ):
        for file in options.textual_inversion:
            pipe.load_textual_inversion(file)
        pipe.set_loras(parse_loras(options.lora), partial=options.lora_partial)
        request = pipe.request(prompt, options.negative, **call_keywords(options))
        _check_outputs(options, request.batch)
        _merge_tagged(pipe, request.merged_loras)
        pipe.prepare(request)
        for step in pipe.denoise(request):
            advance("denoising", step.index + 1, step.total)
            if options.preview is not None:
                write_png(pipe.preview(request, step)[0], options.preview)
        result = pipe.finish(request, step.x)
    if options.output is None:
        paths = _save_unused(result, f"eri-{result.seeds[0]}")
    else:
        paths = result.save(options.output)
    for path, seed in zip(paths, result.seeds, strict=True):
        say(f"{path}  seed {seed}")


def _merge_tagged(pipe: Pipeline, scales: Mapping[str, float]) -> None:
    """Gives the LoRAs of the prompt's tags, each that of a `--lora`, their scales."""
    if scales:
        merged: dict[Any, Scale] = {**pipe.loras, **scales}
        pipe.set_loras(merged)


def _check_outputs(options: argparse.Namespace, count: int) -> None:
    """Raises `UsageError` if a file that the command will write cannot be written."""
    from eri_runtime.images import check_output
    from eri_runtime.pipeline import numbered_paths

    for path in numbered_paths(options.output or Path("eri-0.png"), count):
        check_output("--output", path)
    if options.preview is not None:
        check_output("--preview", options.preview)


def _save_unused(result: Result, stem: str) -> list[Path]:
    """Saves a result as `STEM.png`, or the first of `STEM_2.png`, `STEM_3.png`, … not in use.

    A name that another process takes meanwhile is left to it.
    """
    for name in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2))):
        if any(Path().glob(f"{name}[.-]*")):
            continue
        with suppress(FileExistsError):
            return result.save(f"{name}.png", overwrite=False)
    raise AssertionError("the names never end")
