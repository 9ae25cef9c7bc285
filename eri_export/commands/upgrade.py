"""The command `eri upgrade`."""

from __future__ import annotations

import argparse
from pathlib import Path

from eri_export.commands.export import require_extra
from eri_export.progress import Progress
from eri_export.publishing.atomic_publish import terminated_as_interrupt
from eri_runtime.commands.output import check_bundle
from eri_runtime.commands.progress_bars import progress_bars
from eri_runtime.commands.subcommand import Subparsers, add_command, say


def upgrade_command(commands: Subparsers) -> None:
    """Registers `eri upgrade`."""
    summary = "Give an older bundle what bundles exported now have: step graph, step cache."
    parser = add_command(commands, "upgrade", summary, upgrade)
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="folder that eri export has written"
    )


def upgrade(options: argparse.Namespace) -> None:
    """Runs `eri upgrade` and prints what changed; raises the errors of `upgrade_bundle.upgrade`."""
    require_extra("eri upgrade")
    check_bundle(options.bundle)
    from eri_export.publishing import upgrade_bundle

    def draw(event: Progress) -> None:
        advance(event.component, event.done, event.total, doing=event.stage)

    with terminated_as_interrupt(), progress_bars() as advance:
        upgraded = upgrade_bundle.upgrade(options.bundle, progress=draw)
    if upgraded.error is None and not upgraded.parts:
        say(f"{options.bundle}: has everything that bundles have now, nothing changed")
        return
    if upgraded.error is not None:
        say(f"{options.bundle}: the step graph takes a row for each image now")
        say(f"relative error {upgraded.error:.2g} against the denoiser and the older step graph")
    if upgraded.parts:
        say(f"{options.bundle}: its steps can be cached now, with --step-cache")
    for file in upgraded.dropped:
        say(f"dropped {file}, a plan of the older step graph; `eri build` makes a new one")
