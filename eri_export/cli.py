"""`eri export` and `eri demo`, which the runtime's command finds by their entry points."""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import get_args

from eri_export.embedded import FAMILIES, checkpoint
from eri_export.progress import Progress
from eri_runtime.cli import Subparsers, add_command, say
from eri_runtime.errors import BackendError
from eri_runtime.inspection import megabytes
from eri_runtime.spec import Bundle, Precision

NEEDS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")

# what the demo draws: captions of the training set, so the sheet shows what the model has learnt,
# with less guidance than SD3's default, which makes the colours of so small a model harsh
GUIDANCE = 4.0
PROMPTS = (
    "a red heart",
    "a red apple",
    "a pizza",
    "a cat face",
    "a rocket",
    "a sunflower",
    "an octopus",
    "a hamburger",
)


def export_command(commands: Subparsers) -> None:
    """Register `eri export`."""
    parser = add_command(commands, "export", "Export a checkpoint to a bundle.", export)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a diffusers folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="engines/NAME if left")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")


def export(options: argparse.Namespace) -> None:
    """Export, and say where and how large."""
    output = options.output or Path("engines") / options.checkpoint.resolve().name
    say(summary(run_export(options.checkpoint, output, options.precision)))


def demo_command(commands: Subparsers) -> None:
    """Register `eri demo`."""
    summary = "Export the embedded checkpoint and draw a contact sheet with it."
    parser = add_command(commands, "demo", summary, demo)
    parser.add_argument("--family", choices=list(FAMILIES), default="sd35")
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"), metavar="FOLDER")
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def demo(options: argparse.Namespace) -> None:
    """Export the embedded checkpoint, draw eight prompts, and name the files."""
    say(summary(run_export(checkpoint(options.family), options.bundle, "fp32")))
    started = time.perf_counter()
    sheet = draw_sheet(options.bundle, options.output, options.seed)
    say(f"{sheet}  {len(PROMPTS)} prompts in {time.perf_counter() - started:.1f} s:")
    say("  " + ", ".join(PROMPTS))


def run_export(source: Path, output: Path, precision: Precision) -> Bundle:
    """Export with progress bars; raises `BackendError` where the export extra is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        fix = "pip install 'eri-diffusion[export]'"
        raise BackendError(
            "eri export", got=f"no {', '.join(missing)}", expected="the export extra", fix=fix
        )
    from eri_export.bundle import export as export_checkpoint
    from eri_runtime.progress import Unit, progress_bars

    def draw(event: Progress) -> None:
        unit: Unit = "bytes" if event.stage == "write" else "steps"
        advance(event.component, event.done, event.total, doing=event.stage, unit=unit)

    with progress_bars() as advance:
        return export_checkpoint(source, output, precision=precision, progress=draw)


def draw_sheet(bundle: Path, folder: Path, seed: int) -> Path:
    """Draw `PROMPTS` with the bundle, each from the same noise, and save them as one sheet."""
    from eri_runtime.images import contact_sheet, save_png
    from eri_runtime.pipelines import load
    from eri_runtime.progress import progress_bars

    with load(bundle) as pipe, progress_bars() as advance:
        result = pipe(
            PROMPTS,
            guidance_scale=GUIDANCE,
            seed=[seed] * len(PROMPTS),
            on_step=lambda step: advance("denoising", step.index + 1, step.total),
        )
    text = f"{', '.join(PROMPTS)}\n{result.parameters[0].splitlines()[-1]}"
    return save_png(contact_sheet(result.images, columns=4, scale=2), folder / "demo.png", text)


def summary(bundle: Bundle) -> str:
    """One line: where, what, how large, how close to PyTorch."""
    worst = max(component.parity for component in bundle.components.values())
    return (
        f"{bundle.root}  {bundle.family}, {len(bundle.components)} components, "
        f"{megabytes(bundle.size)}, "
        f"worst error against PyTorch {worst:.1e}"
    )
