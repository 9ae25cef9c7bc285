"""The `eri` command. `export` and `demo` come from whoever registers under `eri.commands`.

Exit status: 0 done, 1 failure, 2 bad use. An error is one line that says the way out.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from eri_runtime.errors import BundleError, CheckpointError, EriError, UsageError

Subparsers = Any  # argparse keeps the type of add_subparsers' result private


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status."""
    logging.basicConfig(level=logging.WARNING, format="eri: %(message)s")
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (UsageError, CheckpointError, BundleError) as error:
        return _fail(error, 2)
    except (EriError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Every command this installation has."""
    parser = argparse.ArgumentParser(
        prog="eri", description="Export diffusion models, and run them without torch."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate_command(commands)
    inspect_command(commands)
    for entry in sorted(entry_points(group="eri.commands"), key=lambda entry: entry.name):
        entry.load()(commands)
    return parser


def add_command(
    commands: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """A subcommand whose parsed options are given to `run`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def say(text: str) -> None:
    """Print to standard output, which is for what was asked; bars and errors go elsewhere."""
    sys.stdout.write(text + "\n")


def _fail(error: object, status: int) -> int:
    text = " ".join(str(error).split())
    sys.stderr.write(f"eri: {text}\n")
    return status


# eri generate


def generate_command(commands: Subparsers) -> None:
    """Register `eri generate`."""
    parser = add_command(commands, "generate", "Make images from a bundle.", generate)
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder made by eri export")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale")
    parser.add_argument(
        "--true-cfg", type=float, default=1.0, metavar="G", help="Flux's CFG with --negative"
    )
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="pixels, such as 1024x1024")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the first image")
    parser.add_argument("--sampler", metavar="NAME")
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's noise level, 0 to 1")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="number of images")
    parser.add_argument("--backend", default="auto", metavar="auto|cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.png",
        help="eri-SEED.png, never overwriting, if left",
    )


def generate(options: argparse.Namespace) -> None:
    """Make images, save them with their parameters, and name the files."""
    from eri_runtime.pipelines import load
    from eri_runtime.progress import progress_bars

    if options.output is not None and options.output.suffix.lower() != ".png":
        raise UsageError("--output", got=options.output, expected="a name that ends in .png")
    width, height = options.size or (None, None)
    with (
        load(options.bundle, options.backend, threads=options.threads) as pipe,
        progress_bars() as advance,
    ):
        result = pipe(
            options.prompt,
            options.negative,
            height=height,
            width=width,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            true_cfg_scale=options.true_cfg,
            num_images_per_prompt=options.batch,
            seed=options.seed,
            sampler=options.sampler,
            eta=options.eta,
            on_step=lambda step: advance("denoising", step.index + 1, step.total),
        )
    output = options.output or _unused(f"eri-{result.seeds[0]}")
    for path, seed in zip(result.save(output), result.seeds, strict=True):
        say(f"{path}  seed {seed}")


def _unused(stem: str) -> Path:
    """`STEM.png` here, or the first `STEM_2.png`, `STEM_3.png`, … of which nothing exists yet."""
    stems = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2)))
    free = next(name for name in stems if not any(Path().glob(f"{name}[.-]*")))
    return Path(f"{free}.png")


def parse_size(text: str) -> tuple[int, int]:
    """`1024x768` as (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT, such as 1024x768")
    return int(width), int(height)


# eri inspect


def inspect_command(commands: Subparsers) -> None:
    """Register `eri inspect`."""
    summary = "Say what is in a bundle, verify it, and say what can run it here."
    parser = add_command(commands, "inspect", summary, inspect)
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder made by eri export")


def inspect(options: argparse.Namespace) -> None:
    """Verify every hash, then print components, shapes, sizes and backends."""
    from eri_runtime import manifest
    from eri_runtime.inspection import describe_bundle
    from eri_runtime.integrity import verify_all
    from eri_runtime.progress import progress_bars

    bundle = manifest.read(options.bundle)
    done = 0
    with progress_bars() as advance:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            advance("verifying", done, bundle.size, unit="bytes")

        verify_all(bundle, on_bytes)
    for line in describe_bundle(bundle):
        say(line)


if __name__ == "__main__":
    sys.exit(main())
