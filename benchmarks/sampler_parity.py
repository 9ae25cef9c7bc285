"""Measures the error of every sampler against its reference, run by run.

    python -m benchmarks.sampler_parity [-o FILE]

Prints a line for each sampler, schedule and prediction with the worst error over its numbers of
steps. An error is the largest difference of any x of the trajectory, relative to the largest value
of that x. `float32` is our float32 loop against diffusers', or against the float64 oracle if
diffusers has no such sampler; `float64` is our float64 loop against the oracle. Exit status 1 if a
run exceeds its bound.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.support.references.case import TOLERANCE32, TOLERANCE64, Case, Errors, outside
from tests.support.references.cases import CASES
from tests.support.references.differences import DIFFERENCES
from tests.support.references.runs import measure

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "diffusers")


@dataclass(frozen=True)
class Row:
    """A case and its runs by number of steps."""

    case: Case
    runs: dict[int, Errors]

    @property
    def outside(self) -> dict[int, str]:
        """The bound that each failing run exceeds, by number of steps."""
        broken = {steps: outside(self.case, errors) for steps, errors in self.runs.items()}
        return {steps: bound for steps, bound in broken.items() if bound}

    @property
    def excused(self) -> list[int]:
        """The runs that differ from diffusers by more than 1e-5 for a reason the case states."""
        return [steps for steps, errors in self.runs.items() if errors.float32 > TOLERANCE32]

    @property
    def reason(self) -> str:
        """The reason for the excused runs; empty if there are none."""
        if not self.excused:
            return ""
        return self.case.reason or getattr(self.case.reference, "rounds", "")

    def worst(self, column: str) -> float:
        """Returns the worst error over the numbers of steps."""
        worst: float = max(getattr(errors, column) for errors in self.runs.values())
        return worst


def main() -> int:
    """Runs every case, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "sampler_parity.json.gz")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # diffusers' deprecations
    rows = [Row(case, {steps: measure(case, steps) for steps in case.steps}) for case in CASES]
    differences = [_difference(each) for each in DIFFERENCES]
    summary = _summary(rows)
    _show(rows, differences, summary)
    _record(options.output, rows, differences, summary)
    return 1 if summary["outside"] or any(not each["differs"] for each in differences) else 0


def _difference(difference: Any) -> dict[str, Any]:
    """Measures the effect of a definition that differs from diffusers'."""
    error = difference.shown()
    return {
        "what": difference.what,
        "why": difference.why,
        "case": str(difference.case),
        "steps": difference.steps,
        "error": float(f"{error:.2e}") if isfinite(error) else "NaN",
        "differs": not error <= TOLERANCE32,
    }


def _summary(rows: list[Row]) -> dict[str, Any]:
    """Returns counts and the worst errors over all runs."""
    runs = [(row, steps, errors) for row in rows for steps, errors in row.runs.items()]
    plain = [run for run in runs if run[1] not in run[0].excused]
    return {
        "cases": len(rows),
        "runs": len(runs),
        "outside": sum(len(row.outside) for row in rows),
        "beside_diffusers": sum(row.case.reference is not None for row, _, _ in runs),
        "oracles": {name: sum(e.oracle == name for _, _, e in runs) for name in _oracles(runs)},
        "excused": sum(len(row.excused) for row in rows),
        "worst_float32": _worst(plain, "float32"),
        "worst_float64": _worst(runs, "float64"),
    }


def _oracles(runs: list[Any]) -> list[str]:
    """Returns the names of the oracles."""
    return sorted({errors.oracle for _, _, errors in runs})


def _worst(runs: list[Any], column: str) -> dict[str, Any]:
    """Returns the run with the largest error."""
    row, steps, errors = max(runs, key=lambda run: getattr(run[2], column))
    return {"error": getattr(errors, column), "case": str(row.case), "steps": steps}


def _show(rows: list[Row], differences: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Prints the table, the excused runs and the differences by definition."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table("sampler", "schedule", "prediction", "reference", "steps", box=None)
    for title in ("float32", "float64", "within"):
        table.add_column(title, justify="right")
    for row in rows:
        single, double = (f"{row.worst(column):.1e}" for column in ("float32", "float64"))
        within = "NO" if row.outside else "yes, see below" if row.excused else "yes"
        steps = " ".join(map(str, row.runs))
        table.add_row(*row.case.columns(), steps, single, double, within)
    console.print(table)
    console.print("\nMore than 1e-5 from diffusers, within the bound of the case:")
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        those = [row for row in rows if row.reason == reason]
        runs = sum(len(row.excused) for row in those)
        console.print(f"  {runs} runs of {', '.join(_samplers(those))}: {reason}")
    console.print("\nDiffers by definition:")
    for each in differences:
        console.print(f"  {each['what']} ({each['error']}: {each['case']}, N {each['steps']})")
        console.print(f"    {each['why']}")
    console.print(
        f"\n{summary['runs']} runs of {summary['cases']} cases, {summary['outside']} outside; "
        f"{summary['beside_diffusers']} against diffusers; oracles {summary['oracles']}"
    )
    for column in ("float32", "float64"):
        worst = summary[f"worst_{column}"]
        console.print(f"worst {column} {worst['error']:.1e}: {worst['case']}, N {worst['steps']}")
    if not find_spec("scipy"):
        console.print("without SciPy, diffusers' beta levels and its LMS were left out")


def _samplers(rows: list[Row]) -> list[str]:
    """Returns the names of the samplers, once each."""
    return list(dict.fromkeys(row.case.sampler for row in rows))


def _record(
    output: Path, rows: list[Row], differences: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Writes the versions, the summary and every case."""
    packages = (*PACKAGES, "scipy") if find_spec("scipy") else PACKAGES
    about = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in packages},
        "bounds": {"float32": TOLERANCE32, "float64": TOLERANCE64},
    }
    lines = [_line(row) for row in rows]
    head = {"about": about, "summary": summary, "differs_by_definition": differences}
    body = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    head_text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    text = f'{head_text},\n "cases": [\n{body}\n ]\n}}\n'.encode()
    output.write_bytes(gzip.compress(text, mtime=0) if output.suffix == ".gz" else text)


def _line(row: Row) -> dict[str, Any]:
    """Returns a case with its errors, one for each number of steps."""
    names = ("sampler", "schedule", "prediction", "reference")
    errors = row.runs.values()
    return {
        **dict(zip(names, row.case.columns(), strict=True)),
        "oracle": next(iter(errors)).oracle,
        "steps": list(row.runs),
        "float32": [float(f"{each.float32:.1e}") for each in errors],
        "float64": [float(f"{each.float64:.1e}") for each in errors],
        **({"outside": row.outside} if row.outside else {}),
        **({"reason": row.reason} if row.excused else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
