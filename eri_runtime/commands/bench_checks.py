"""What `eri bench` checks before it starts, and the error of subjects that did not run."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from eri_runtime.commands.bench_options import OPTIONS, TORCH_PARTS
from eri_runtime.commands.subcommand import useless_option
from eri_runtime.errors import (
    BackendError,
    BenchmarkError,
    NotACheckpointError,
    UnknownNameError,
    UsageError,
    short,
)
from eri_runtime.install_hint import install_hint

if TYPE_CHECKING:
    from eri_runtime.bench.plan import Candidate
    from eri_runtime.bench.record import Record
    from eri_runtime.bundle import Bundle

LEAST = {"rounds": 1, "batch": 1, "warm": 0, "cold": 0, "pictures": 0}
READ = {  # options that the modes without a measurement read
    "--compare": ("--compare", "--threshold"),
    "--render": ("--render", "--report", "--force"),
}
INDEX = "model_index.json"  # of a folder that diffusers saved


def check_mode(options: argparse.Namespace) -> None:
    """Raises UsageError for an option that `--render` or `--compare` leaves without effect."""
    mode = "--compare" if options.compare else "--render" if options.render else "a measurement"
    for name, settings in OPTIONS:
        default = settings.get("default", False if "action" in settings else None)
        given = getattr(options, name.removeprefix("--").replace("-", "_")) != default
        read = name in READ[mode] if mode in READ else name != "--threshold"
        if given and not read:
            raise useless_option(name, got=mode)


def check_numbers(options: argparse.Namespace) -> None:
    """Raises UsageError for a number that is too small."""
    for name, least in LEAST.items():
        if (value := getattr(options, name)) < least:
            raise UsageError(f"--{name}", got=value, expected=f"{least} or more")


def check_checkpoint(options: argparse.Namespace) -> None:
    """Raises the error of `--against` that is missing, or is no folder of diffusers."""
    asked = options.torch or options.peers or options.time_export
    if options.against is None:
        if asked:
            got, fix = "no --against", "add `--against CHECKPOINT`, the checkpoint of the bundle"
            raise UsageError("--torch", got=got, expected="a checkpoint for PyTorch", fix=fix)
        return
    if not (options.against / INDEX).is_file():
        got = f"no {INDEX} in it" if options.against.is_dir() else "no such folder"
        got = "a file" if options.against.is_file() else got
        expected = "the folder of diffusers that the bundle was exported from"
        raise NotACheckpointError(f"--against {options.against}", got=got, expected=expected)


def check_torch(ways: Iterable[str]) -> None:
    """Raises UnknownNameError for a way to run PyTorch that does not exist."""
    for way in ways:
        if unknown := sorted(set(way.split("+")) - set(TORCH_PARTS)):
            expected = f"{', '.join(TORCH_PARTS)}, or several with + between"
            raise UnknownNameError("--torch", got=", ".join(map(short, unknown)), expected=expected)


def check_backends(bundle: Bundle, names: Iterable[str]) -> None:
    """Raises UnknownNameError for an unknown backend, BackendError for one that cannot run here."""
    from eri_runtime.executors import BACKENDS, refusals

    for name in names:
        if name not in BACKENDS:
            expected = f"some of {', '.join(BACKENDS)}"
            raise UnknownNameError("--backends", got=short(name), expected=expected)
        if reasons := refusals(bundle, name):
            expected, fix = "a backend that can run the bundle here", f"leave out {name}"
            raise BackendError(
                f"backend {name}", got="; ".join(reasons), expected=expected, fix=fix
            )


def check_workers(selected: Iterable[Candidate]) -> None:
    """Raises the error of a subject that no installed package measures."""
    for each in selected:
        if each.module is None and each.kind == "peer":
            raise UnknownNameError("--peers", got=short(each.name), expected="a known peer")
        if each.module is None or (each.kind == "torch" and not _importable("torch")):
            got, fix = "no torch", install_hint("export")
            raise BackendError(each.name, got=got, expected="the export extra", fix=fix)


def check_report(report: Path | None) -> None:
    """Raises BackendError if the report cannot be made, before anything is measured for it."""
    if report is not None and not _importable("jinja2"):
        fix = install_hint("bench")
        raise BackendError("--report", got="no Jinja2", expected="the bench extra", fix=fix)


def check_results(options: argparse.Namespace) -> list[Path]:
    """Returns the files of results that `--force` lets be replaced.

    Raises UsageError for one that exists without `--force`, or cannot be written.
    """
    from eri_runtime.images import check_output

    existing = []
    for name in ("output", "report"):
        path: Path | None = getattr(options, name)
        if path is None:
            continue
        check_output(f"--{name}", path)
        if path.exists():
            existing.append(path)
        if path.exists() and not options.force:
            got, fix = "a file that exists", "add --force to replace it, or give another name"
            raise UsageError(f"--{name} {path}", got=got, expected="a new name", fix=fix)
    return existing


def check_all_ran(record: Record) -> None:
    """Raises BenchmarkError, which names them, if subjects of a benchmark did not run."""
    lost = {each.name: each.reason for each in record.subjects if each.status != "ok"}
    if not lost:
        return
    got = "; ".join(f"{name}: {reason}" for name, reason in lost.items())
    some = "it" if len(lost) == 1 else "them"
    fix = f"mend what the message says, or measure without {some}; the others' rows stand"
    raise BenchmarkError(
        f"{len(lost)} of {len(record.subjects)} subjects",
        got=got,
        expected="all of them to run",
        fix=fix,
    )


def _importable(module: str) -> bool:
    """Returns whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def describe_replaced(path: Path, existed: bool) -> str:
    """Returns the line that reports a file, and that an older one was replaced."""
    return f"{path}  replaced" if existed else str(path)
