"""Checks the paths that `eri export` is given, before torch is imported for the rest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from eri_export.choices import make_policy
from eri_export.publishing.atomic_publish import replaces
from eri_runtime.bundle import hub
from eri_runtime.commands.subcommand import parse_lora


def check_paths(options: argparse.Namespace, target: Path) -> None:
    """Finds mistyped paths, and what is in the way of the bundle.

    Raises `NotACheckpointError` for something that is neither a path nor an id of the Hub,
    `UsageError` if `target` exists and is not a bundle, and `UnknownNameError` for a precision.
    Whatever passes is looked at again when it is read.
    """
    make_policy(options.precision)
    for path in _sources(options):
        if not hub.path_exists(Path(path)):
            hub.named_repository(path)
    replaces(target)


def _sources(options: argparse.Namespace) -> Iterator[str | Path]:
    """Yields the paths that are read, each of which may be an id of the Hub instead."""
    yield options.checkpoint
    if options.vae is not None:
        yield options.vae
    yield from options.text_encoders
    yield from (parse_lora(each)[0] for each in options.lora)
