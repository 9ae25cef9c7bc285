"""`eri export-triton`: writes a model repository for NVIDIA Triton from a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from eri_runtime.commands.output import check_bundle
from eri_runtime.commands.subcommand import Subparsers, add_command, say


def export_triton_command(commands: Subparsers) -> None:
    """Registers `eri export-triton`."""
    summary = "Write a model repository for NVIDIA Triton from a bundle."
    parser = add_command(commands, "export-triton", summary, export_triton)
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by eri export")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="a new or empty folder"
    )
    parser.add_argument(
        "--plans", action="store_true", help="components as TensorRT plans, not as ONNX graphs"
    )
    parser.add_argument(
        "--previews",
        action="store_true",
        help="stream previews; the pipeline then answers Triton's streaming calls only",
    )
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="the pipeline's engine (default: auto)"
    )


def export_triton(options: argparse.Namespace) -> None:
    """Writes the repository, verifies its files, and prints the command that serves it."""
    check_bundle(options.bundle)
    from eri_runtime.bundle import read_bundle
    from eri_runtime.commands.progress_bars import progress_bars
    from eri_runtime.triton import export_repository

    done, total = 0, read_bundle(options.bundle).size
    with progress_bars() as advance:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            advance("verifying", done, total, unit="bytes")

        folder = export_repository(
            options.bundle,
            options.output,
            plans=options.plans,
            previews=options.previews,
            backend=options.backend,
            on_bytes=on_bytes,
        )
    say(f"{folder}  serve it with `tritonserver --model-repository {folder}`")
