"""`eri generate`: generates images from one prompt; `generate_many` handles `--prompts`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.generate_options import (
    add_generate_options,
    call_keywords,
    samplers_text,
)
from eri_runtime.commands.ignored_options import (
    check_combinations,
    check_for_bundle,
    check_not_input,
    check_without_cfg,
)
from eri_runtime.commands.memory_options import memory_keywords
from eri_runtime.commands.one_picture import backend_of
from eri_runtime.commands.output import Output
from eri_runtime.commands.subcommand import (
    Subparsers,
    add_command,
    check_exists,
    parse_lora,
    parse_loras,
)
from eri_runtime.errors import UsageError

if TYPE_CHECKING:
    from eri_runtime.loop import Step
    from eri_runtime.pipeline import Pipeline, Result
    from eri_runtime.request import Request
    from eri_runtime.weights import Scale

EXAMPLES = (
    'engines/demo "a red heart" -o heart.png',
    'engines/demo "a red heart" --seed 7 --batch 4 --steps 20 --guidance 4',
    'engines/demo "a red heart" --image photo.png --strength 0.5 --lora style.safetensors:0.8',
    "engines/demo --prompts prompts.txt -o out",
)


def generate_command(commands: Subparsers) -> None:
    """Registers `eri generate`."""
    summary = "Generate images from a bundle."
    parser = add_command(commands, "generate", summary, generate, EXAMPLES)
    parser.later = samplers_text  # type: ignore[attr-defined]
    add_generate_options(parser)


def generate(options: argparse.Namespace) -> None:
    """Generates images, saves them with their parameters, and prints the names of the files."""
    if (options.prompt is None) == (options.prompts is None):
        got = "neither" if options.prompt is None else "both"
        raise UsageError("PROMPT and --prompts", got=got, expected="one of them")
    check_combinations(options)
    output = Output.of(options)
    _check_paths(options)
    if options.prompts is None:
        _generate_one(options, output)
        return
    from eri_runtime.commands.generate_many import generate_many

    generate_many(options, output)


def _check_paths(options: argparse.Namespace) -> None:
    """Raises `UsageError` for a file that is missing, before NumPy is imported."""
    for name in ("image", "mask", "prompts"):
        check_exists(f"--{name}", getattr(options, name))
    for file in options.textual_inversion:
        check_exists("--textual-inversion", file)
    for path, _ in map(parse_lora, options.lora):
        if path.endswith(".safetensors") and ":" not in path:  # else it may be an id of the Hub
            check_exists("--lora", path)


def _generate_one(options: argparse.Namespace, output: Output) -> None:
    """Generates the images of one prompt."""
    _check_names(options)
    output.note_opening(options.bundle)
    from eri_runtime.pipeline import load

    keywords = memory_keywords(options)
    words = {"threads": options.threads, "verify": options.verify, **keywords}
    words["cache"] = options.keep_compiled
    with load(options.bundle, backend_of(options), **words) as pipe, output.progress() as advance:
        request, existing = _prepared(pipe, options)
        output.lap("open")
        computed = 0
        for step in pipe.denoise(request):
            computed += step.computed
            advance("denoising", step.index + 1, step.total)
            if options.preview is not None:
                _write_preview(pipe, request, step, options.preview)
        result = pipe.finish(request, step.x)
        output.lap("generate")
    if options.output is None:
        paths = _save_unused(result, f"eri-{result.seeds[0]}")
    else:
        paths = result.save(options.output)
    for path, seed in zip(paths, result.seeds, strict=True):
        output.say(f"{path}  seed {seed}{', replaced' if path in existing else ''}")
    if request.step_cache is not None:
        output.say(f"{computed} of {step.total} steps computed")
    about = {"bundle": options.bundle, "prompt": options.prompt, "parameters": result.parameters}
    output.finish(files=paths, seeds=result.seeds, replaced=existing, **about)


def _check_names(options: argparse.Namespace) -> None:
    """Raises `UsageError` for names of files that cannot be meant, before anything is opened."""
    for name, path in (("--output", options.output), ("--preview", options.preview)):
        if path is not None and path.suffix.lower() != ".png":
            raise UsageError(name, got=path, expected="a name that ends in .png")


def _prepared(pipe: Pipeline, options: argparse.Namespace) -> tuple[Request, list[Path]]:
    """Returns the request of the options, with what it needs opened, and what it will replace."""
    check_for_bundle(options, pipe.bundle)
    prompt = {options.prompt: 1.0, **dict(options.also)} if options.also else options.prompt
    for file in options.textual_inversion:
        pipe.load_textual_inversion(file)
    pipe.set_loras(parse_loras(options.lora), partial=options.lora_partial)
    request = pipe.request(prompt, negative_prompt=options.negative, **call_keywords(options))
    check_without_cfg(options, pipe.bundle, request.guidance)
    existing = _check_outputs(options, request.batch)
    _merge_tagged(pipe, request.merged_loras)
    pipe.prepare(request)
    return request, existing


def _write_preview(pipe: Pipeline, request: Request, step: Step, file: Path) -> None:
    """Writes a rough image of a step."""
    from eri_runtime.images import write_png

    write_png(pipe.preview(request, step)[0], file)


def _merge_tagged(pipe: Pipeline, scales: Mapping[str, float]) -> None:
    """Gives the LoRAs of the prompt's tags, each that of a `--lora`, their scales."""
    if scales:
        merged: dict[Any, Scale] = {**pipe.loras, **scales}
        pipe.set_loras(merged)


def _check_outputs(options: argparse.Namespace, count: int) -> list[Path]:
    """Returns the pictures that exist, which the command will replace.

    Raises `UsageError` if a file cannot be written, or is one that the command reads.
    """
    from eri_runtime.images import check_output
    from eri_runtime.pipeline import numbered_paths

    paths = numbered_paths(options.output or Path("eri-0.png"), count)
    check_not_input(options, [*paths, *filter(None, [options.preview])])
    for path in paths:
        check_output("--output", path)
    if options.preview is not None:
        check_output("--preview", options.preview)
    return [path for path in paths if options.output is not None and path.exists()]


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
