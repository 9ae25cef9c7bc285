"""Says whether a backend of this machine can run a bundle, and which precision would run if not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eri_runtime.bundle import Bundle, Precision
from eri_runtime.executors import BACKENDS, refusals
from eri_runtime.executors.choice import AUTO, reasons_against_auto

NARROWEST: Sequence[Precision] = ("fp16", "fp32")  # the first that runs is the smaller bundle


def usable_line(bundle: Bundle) -> str | None:
    """Returns a line about running a bundle here; None if `auto` finds a backend for it.

    Takes a planned bundle too, of which no component has been compared yet.
    """
    usable = [name for name in BACKENDS if not refusals(bundle, name)]
    if any(name in AUTO and not reasons_against_auto(bundle, name) for name in usable):
        return None
    if usable:
        why = "; ".join(reasons_against_auto(bundle, usable[0]))
        return f"auto finds no backend here: name one, as `--backend {usable[0]}` ({why})"
    reasons = "; ".join(f"{name}: {', '.join(refusals(bundle, name))}" for name in AUTO)
    wider = next((each for each in NARROWEST if _would_run(bundle, each)), None)
    fix = f"; `--precision {wider}` would run" if wider else ""
    return f"no backend here can run it ({reasons}){fix}"


def planned_line(bundle: Bundle) -> str | None:
    """Returns the line about a planned bundle, as if all its comparisons will succeed."""
    compared = dict.fromkeys(BACKENDS, 0.0)
    components = {
        name: dataclasses.replace(spec, compared=compared)
        for name, spec in bundle.components.items()
    }
    return usable_line(dataclasses.replace(bundle, components=components))


def _would_run(bundle: Bundle, precision: Precision) -> bool:
    """Returns whether a backend of `auto` could run the bundle in another precision."""
    components = {
        name: dataclasses.replace(spec, precision=precision)
        for name, spec in bundle.components.items()
    }
    other = dataclasses.replace(bundle, components=components)
    return any(not refusals(other, name) for name in AUTO)
