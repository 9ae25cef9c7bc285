"""The command `eri demo`: exports an embedded checkpoint and generates a contact sheet with it.

A bundle that an earlier run exported from the same checkpoint is used again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from eri_export.choices import make_ranges
from eri_export.commands.existing_bundle import is_up_to_date
from eri_export.commands.export import require_extra, run_export
from eri_export.embedded.assemble import assembled
from eri_export.publishing.atomic_publish import replaces, terminated_as_interrupt
from eri_runtime.commands.output import Output
from eri_runtime.commands.subcommand import Subparsers, add_command, say

# captions of the training set, so the sheet shows what the model has learnt
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
    """The names and settings of a family's demo."""

    name: str
    guidance: float | None = None  # default: the family's
    size: str | None = None  # default: that of the checkpoint's config

    @property
    def bundle(self) -> Path:
        """The default folder of the bundle."""
        return Path("engines") / self.name

    def sheet(self, folder: Path) -> Path:
        """Returns the file of the contact sheet in a folder."""
        return folder / f"{self.name}.png"


# SD3's default guidance makes the colours of so small a model harsh; Flux's config has no image
# size
GUIDANCE = 4.0
DEMOS = {
    "sd35": Demo(name="demo", guidance=GUIDANCE),
    "sdxl": Demo(name="demo-sdxl"),
    "flux": Demo(name="demo-flux", size="64:96:256"),
}


def demo_command(commands: Subparsers) -> None:
    """Registers `eri demo`."""
    summary = "Export an embedded checkpoint and draw a contact sheet with it."
    parser = add_command(commands, "demo", summary, demo)
    family = "model family to demonstrate (default: %(default)s)"
    parser.add_argument("--family", choices=[*DEMOS], default="sd35", help=family)
    bundle = "folder of the bundle (default: engines/demo, or engines/demo-FAMILY)"
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help=bundle)
    output = "folder of the contact sheet (default: %(default)s)"
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out"), metavar="FOLDER", help=output
    )
    force = "export again, even if the bundle is there and up to date"
    parser.add_argument("--force", action="store_true", help=force)
    seed = "seed of the noise (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=seed)


def demo(options: argparse.Namespace) -> None:
    """Exports the embedded checkpoint if need be, generates eight prompts, prints the files."""
    require_extra()
    output, chosen = Output(), DEMOS[options.family]
    bundle, ranges = options.bundle or chosen.bundle, make_ranges(size=chosen.size)
    if replaces(bundle) and not options.force:
        output.note(f"checking {bundle}")
    with terminated_as_interrupt(), assembled(options.family) as checkpoint:
        if not options.force and is_up_to_date(bundle, checkpoint, ranges):
            say(f"{bundle}  already exported, used as it is; `eri demo --force` exports it again")
        else:
            output.note(f"exporting the embedded {options.family} checkpoint to {bundle}")
            run_export(bundle, output, checkpoint=checkpoint, ranges=ranges)
    started = time.perf_counter()
    replaced = ", replaced" if chosen.sheet(options.output).exists() else ""
    sheet = draw_sheet(bundle, chosen, options.output, options.seed)
    say(f"{sheet}  {len(PROMPTS)} prompts in {time.perf_counter() - started:.1f} s{replaced}:")
    say("  " + ", ".join(PROMPTS))


def draw_sheet(bundle: Path, chosen: Demo, folder: Path, seed: int) -> Path:
    """Generates `PROMPTS`, each from the same noise, and saves the images as one sheet."""
    from eri_runtime.commands.progress_bars import progress_bars
    from eri_runtime.images import contact_sheet, save_png
    from eri_runtime.pipeline import load

    with load(bundle) as pipe, progress_bars() as advance:
        result = pipe(
            PROMPTS,
            guidance_scale=chosen.guidance,
            seed=[seed] * len(PROMPTS),
            on_step=lambda step: advance("denoising", step.index + 1, step.total),
        )
    text = f"{', '.join(PROMPTS)}\n{result.parameters[0].splitlines()[-1]}"
    picture = contact_sheet(result.images, columns=4, scale=2)
    return save_png(picture, chosen.sheet(folder), text)
