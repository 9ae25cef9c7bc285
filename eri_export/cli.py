"""`eri export` and `eri demo`, which the runtime's command finds by their entry points."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eri_export.embedded.assemble import assembled
from eri_export.precision import ALIASES, COMPONENTS
from eri_export.progress import Progress, Stopwatch
from eri_export.publish import terminated_as_interrupt
from eri_export.ranges import make_ranges
from eri_export.trt.cli import add_target, build_after_export, check_target
from eri_runtime.command import Subparsers, add_command, parse_lora, say
from eri_runtime.errors import BackendError

CHOSEN = (
    "precision",
    "lora_rank",
    "attention_slice",
    "vae",
    "text_encoders",
    "config",
    "variant",
    "revision",
)
NEEDS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")

# what the demo draws: captions of the training set, so the sheet shows what the model has learnt
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


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where a family's demo goes, and how its checkpoint draws best."""

    name: str
    guidance: float | None = None  # the family's own if left
    size: str | None = None  # that of the checkpoint's config if left

    @property
    def bundle(self) -> Path:
        """The folder of the bundle, if no other is asked for."""
        return Path("engines") / self.name


# less guidance than SD3's default, which makes the colours of so small a model harsh; Flux's config
# does not say what size its pictures have
GUIDANCE = 4.0
DEMOS = {
    "sd35": Demo(name="demo", guidance=GUIDANCE),
    "sdxl": Demo(name="demo-sdxl"),
    "flux": Demo(name="demo-flux", size="64:96:256"),
}


# option, or options, and what argparse is told of it
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("checkpoint",),
        {
            "metavar": "CHECKPOINT",
            "help": "a diffusers folder, a .safetensors file, or OWNER/NAME[:FILE] of the "
            "Hugging Face Hub, which is downloaded to its cache",
        },
    ),
    (
        ("-o", "--output"),
        {"metavar": "FOLDER", "type": Path, "help": "the bundle; engines/NAME if left"},
    ),
    (
        ("--precision",),
        {
            "metavar": "P[,COMPONENT=P]...",
            "default": "fp32",
            "help": "fp32, fp16 or bf16, and other ones for some components, as fp16,vae=fp32: "
            + ", ".join((*COMPONENTS, *ALIASES)),
        },
    ),
    (
        ("--size",),
        {"metavar": "WxH|MIN:OPT:MAX", "help": "pixels to serve, as 1024x1024 or 512:1024:2048"},
    ),
    (("--batch",), {"metavar": "N|MIN:OPT:MAX", "help": "images of one call, as 1:1:4"}),
    (
        ("--tokens",),
        {"metavar": "N|MIN:OPT:MAX", "help": "length of T5's text, or of SDXL's, as 77:256:512"},
    ),
    (
        ("--static",),
        {"action": "store_true", "help": "fix every size at its best one, for the fastest engine"},
    ),
    (
        ("--lora",),
        {
            "action": "append",
            "default": [],
            "metavar": "FILE[:SCALE]",
            "help": "merge a LoRA into the weights for good; may be repeated",
        },
    ),
    (
        ("--lora-rank",),
        {
            "type": int,
            "metavar": "N",
            "help": "let the denoiser take LoRAs up to rank N as inputs, another for each image",
        },
    ),
    (
        ("--attention-slice",),
        {
            "type": lambda text: int(text) if text.lstrip("-").isdigit() else text,
            "metavar": "N|auto|max",
            "help": "compute attention N heads at a time, half of them or one, in less memory",
        },
    ),
    (
        ("--vae",),
        {"metavar": "PATH", "help": "a VAE's file or folder, instead or in addition"},
    ),
    (
        ("--text-encoders",),
        {
            "metavar": "PATH",
            "nargs": "+",
            "default": [],
            "help": "files or folders of text encoders, instead or in addition",
        },
    ),
    (
        ("--config",),
        {"metavar": "FOLDER", "type": Path, "help": "configs and tokenizers for a single file"},
    ),
    (("--variant",), {"metavar": "NAME", "help": "weights to read in a folder, as fp16"}),
    (("--revision",), {"metavar": "REV", "help": "branch, tag or commit of the Hub's repository"}),
    (
        ("--dry-run",),
        {
            "action": "store_true",
            "help": "say what was found, what it would write and how long it would take; "
            "write nothing",
        },
    ),
    (("-v", "--verbose"), {"action": "store_true", "help": "say more of what is done"}),
)


def export_command(commands: Subparsers) -> None:
    """Register `eri export`."""
    parser = add_command(commands, "export", "Export a checkpoint to a bundle.", export)
    for names, settings in OPTIONS:
        parser.add_argument(*names, **settings)
    add_target(parser)


def export(options: argparse.Namespace) -> None:
    """Export and say what came of it, or say what would."""
    require_extra()
    level = logging.INFO if options.verbose else logging.NOTSET
    logging.getLogger("eri_export").setLevel(level)
    output = options.output or Path("engines") / default_name(options.checkpoint)
    ranges = make_ranges(
        size=options.size, batch=options.batch, tokens=options.tokens, static=options.static
    )
    chosen = {name: getattr(options, name) for name in CHOSEN}
    chosen["loras"] = [parse_lora(each) for each in options.lora]
    check_target(options)
    with terminated_as_interrupt():
        if options.dry_run:
            dry_run(output, checkpoint=options.checkpoint, ranges=ranges, **chosen)
            return
        run_export(output, checkpoint=options.checkpoint, ranges=ranges, **chosen)
        build_after_export(output, options)


def default_name(checkpoint: str) -> str:
    """NAME of engines/NAME: that of a folder, of a file without its end, of a repository."""
    path = Path(checkpoint.partition(":")[2] or checkpoint)
    name = path.resolve().name
    return name.removesuffix(path.suffix) if path.suffix == ".safetensors" else name


def dry_run(output: Path, **arguments: Any) -> None:
    """Print the forecast of an export; the errors are those of the export."""
    from eri_export.forecast import forecast
    from eri_export.plan import make_plan

    for line in forecast(make_plan(**arguments), output):
        say(line)


def demo_command(commands: Subparsers) -> None:
    """Register `eri demo`."""
    summary = "Export an embedded checkpoint and draw a contact sheet with it."
    parser = add_command(commands, "demo", summary, demo)
    parser.add_argument("--family", choices=[*DEMOS], default="sd35")
    usual = "engines/demo, or engines/demo-FAMILY if left"
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help=usual)
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def demo(options: argparse.Namespace) -> None:
    """Export the embedded checkpoint, draw eight prompts, and name the files."""
    require_extra()
    chosen = DEMOS[options.family]
    bundle = options.bundle or chosen.bundle
    with terminated_as_interrupt(), assembled(options.family) as checkpoint:
        run_export(bundle, checkpoint=checkpoint, ranges=make_ranges(size=chosen.size))
    started = time.perf_counter()
    sheet = draw_sheet(bundle, chosen, options.output, options.seed)
    say(f"{sheet}  {len(PROMPTS)} prompts in {time.perf_counter() - started:.1f} s:")
    say("  " + ", ".join(PROMPTS))


def require_extra() -> None:
    """Raise `BackendError` where the export extra is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        fix = "pip install 'eri-diffusion[export]'"
        raise BackendError(
            "eri export", got=f"no {', '.join(missing)}", expected="the export extra", fix=fix
        )


def run_export(output: Path, **arguments: Any) -> None:
    """Export with progress bars, and print the finished lines."""
    started = time.perf_counter()
    from eri_export.bundle import export as export_checkpoint
    from eri_export.finished import finished
    from eri_runtime.progress import Unit, progress_bars

    def draw(event: Progress) -> None:
        unit: Unit = "bytes" if event.stage == "write" else "steps"
        advance(event.component, event.done, event.total, doing=event.stage, unit=unit)

    watch = Stopwatch(draw)
    with progress_bars() as advance:
        bundle = export_checkpoint(output=output, progress=watch, **arguments)
    for line in finished(bundle, watch, time.perf_counter() - started):
        say(line)


def draw_sheet(bundle: Path, chosen: Demo, folder: Path, seed: int) -> Path:
    """Draw `PROMPTS` with the bundle, each from the same noise, and save them as one sheet."""
    from eri_runtime.images import contact_sheet, save_png
    from eri_runtime.pipelines import load
    from eri_runtime.progress import progress_bars

    with load(bundle) as pipe, progress_bars() as advance:
        result = pipe(
            PROMPTS,
            guidance_scale=chosen.guidance,
            seed=[seed] * len(PROMPTS),
            on_step=lambda step: advance("denoising", step.index + 1, step.total),
        )
    text = f"{', '.join(PROMPTS)}\n{result.parameters[0].splitlines()[-1]}"
    picture = contact_sheet(result.images, columns=4, scale=2)
    return save_png(picture, folder / f"{chosen.name}.png", text)
