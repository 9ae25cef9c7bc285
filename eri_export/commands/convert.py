"""The command `eri convert`: pickled weights to safetensors."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from eri_export.publishing.atomic_publish import terminated_as_interrupt
from eri_runtime.commands.subcommand import Subparsers, add_command, say
from eri_runtime.errors import BackendError
from eri_runtime.install_hint import install_hint
from eri_runtime.units import megabytes

SHOWN = 8  # names of entries that are no weights


def convert_command(commands: Subparsers) -> None:
    """Registers `eri convert`."""
    summary = (
        "Convert pickled weights (.ckpt, .pt, .pth, .bin) to safetensors: torch's weights-only "
        "loader reads them in a process of its own, on Linux without network if the kernel can."
    )
    parser = add_command(commands, "convert", summary, convert)
    parser.add_argument("file", metavar="FILE", type=Path, help="pickled weights of torch.save")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.safetensors",
        type=Path,
        help="file to write (default: FILE's name with .safetensors, beside it)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that exists (default: refuse)"
    )


def convert(options: argparse.Namespace) -> None:
    """Runs `eri convert` and prints what was written, and what was not."""
    if importlib.util.find_spec("torch") is None:
        fix = install_hint("export")
        raise BackendError("eri convert", got="no torch", expected="the export extra", fix=fix)
    from eri_export.pickles.convert import convert as convert_pickle

    with terminated_as_interrupt():
        done = convert_pickle(options.file, options.output, force=options.force)
    say(f"{done.file}  {done.tensors} tensors, {megabytes(done.nbytes)}")
    if done.left_out:
        more = f" and {len(done.left_out) - SHOWN} more" if len(done.left_out) > SHOWN else ""
        say(f"  left out, as they are no weights: {', '.join(done.left_out[:SHOWN])}{more}")
    how = "without network" if done.network is None else f"with the network, as {done.network}"
    say(f"  read by torch's weights-only loader in a process {how}")
