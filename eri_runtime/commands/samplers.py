"""`eri samplers`: lists the samplers with their names and options, and those that suit a bundle."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any

from eri_runtime.commands.subcommand import Subparsers, add_command, say

if TYPE_CHECKING:
    from eri_runtime.bundle import Bundle
    from eri_runtime.sampling import Sampler

KINDS = {"vp": "SDXL", "flow": "SD3.5 and Flux", "edm": "Playground 2.5 and CosXL"}
WIDTH = 80  # characters of a line
COLUMNS = (16, 24, 11)  # characters of name, label and schedules


def samplers_command(commands: Subparsers) -> None:
    """Registers `eri samplers`."""
    summary = "List the samplers: names, schedules and options; with a bundle those that suit it."
    parser = add_command(commands, "samplers", summary, samplers)
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", help="folder written by eri export (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def samplers(options: argparse.Namespace) -> None:
    """Prints the samplers as a table, or as JSON."""
    from eri_runtime.bundle import manifest

    bundle = None if options.bundle is None else manifest.read(options.bundle)
    if options.json:
        say(json.dumps(_as_object(bundle), indent=2))
        return
    for line in _table(bundle):
        say(line)


def _as_object(bundle: Bundle | None) -> dict[str, Any]:
    """Returns what `--json` prints: the samplers, and the bundle's schedule and default."""
    from eri_runtime.sampling import SAMPLERS, SCHEDULERS, names_of, samplers_for

    kind = None if bundle is None else bundle.schedule.kind
    suiting = SAMPLERS.values() if kind is None else [*samplers_for(kind)]
    listed = [
        {
            "name": each.name,
            "label": each.label,
            "other_names": names_of(each)[1:],
            "schedules": _kinds(each),
            "options": {name: _bounds(*option) for name, option in each.options.items()},
            **({} if kind is None else {"suits": each in suiting}),
        }
        for each in SAMPLERS.values()
    ]
    levels = [{"name": each.name, "keywords": dict(each.keywords)} for each in SCHEDULERS]
    found = {"samplers": listed, "schedulers": levels}
    if bundle is None:
        return found
    return {"schedule": kind, "default": bundle.defaults.sampler, **found}


def _bounds(default: float, low: float, high: float) -> dict[str, float | None]:
    """Returns an option's default and range; JSON has no infinity, so None stands for it."""
    values = {"default": default, "low": low, "high": high}
    return {name: value if isfinite(value) else None for name, value in values.items()}


def _kinds(sampler: Sampler) -> list[str]:
    """Returns the kinds of schedules on which a sampler is defined."""
    from eri_runtime.sampling import samplers_for

    return [kind for kind in KINDS if sampler in samplers_for(kind)]  # type: ignore[arg-type]


def _table(bundle: Bundle | None) -> Iterator[str]:
    """Yields the lines of the table."""
    from eri_runtime.sampling import SAMPLERS, samplers_for

    if bundle is None:
        shown = [*SAMPLERS.values()]
        yield from (f"{kind}: schedules of {models}" for kind, models in KINDS.items())
    else:
        shown = [*samplers_for(bundle.schedule.kind)]
        kind, default = bundle.schedule.kind, bundle.defaults.sampler
        yield f"{bundle.root.resolve().name}: {kind} schedule, default {default}"
    yield from _rows("name", "label", "schedules", "options")
    for each in shown:
        options = ", ".join(f"{name}={option.default:g}" for name, option in each.options.items())
        yield from _rows(each.name, each.label, " ".join(_kinds(each)), options)
    yield "names of AUTOMATIC1111, ComfyUI and diffusers are understood too; see --json"


def _rows(name: str, label: str, kinds: str, options: str) -> list[str]:
    """Returns one row of the table, with its options on further lines if they are long."""
    from textwrap import wrap

    cells = zip((name, label, kinds), COLUMNS, strict=True)
    front = "  ".join(text.ljust(width) for text, width in cells) + "  "
    parts = wrap(options, WIDTH - len(front)) or [""]
    rows = [front + parts[0], *(" " * len(front) + part for part in parts[1:])]
    return [row.rstrip() for row in rows]
