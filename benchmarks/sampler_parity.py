"""How far every sampler is from its reference, run by run.

    python -m benchmarks.sampler_parity [-o FILE]

One line for each sampler, schedule and prediction, with the worst over its numbers of steps. Errors
are the largest difference of an x anywhere on the way, relative to the largest value of that x.
`float32` is our float32 loop beside diffusers', or beside the float64 oracle where diffusers has no
such sampler; `float64` is ours beside the oracle. Exit status 1 if a run is outside its bound.
"""

from __future__ import annotations

import argparse
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

from tests.references.case import TOLERANCE32, TOLERANCE64, Case, Errors, outside
from tests.references.cases import CASES
from tests.references.differences import DIFFERENCES
from tests.references.runs import measure

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "diffusers")


@dataclass(frozen=True)
class Row:
    """A case and its runs, by the number of steps."""

    case: Case
    runs: dict[int, Errors]

    @property
    def outside(self) -> dict[int, str]:
        """The bound that each bad run breaks."""
        broken = {steps: outside(self.case, errors) for steps, errors in self.runs.items()}
        return {steps: bound for steps, bound in broken.items() if bound}

    @property
    def excused(self) -> list[int]:
        """The runs further from diffusers than 1e-5: the reason is with the case."""
        return [steps for steps, errors in self.runs.items() if errors.float32 > TOLERANCE32]

    @property
    def reason(self) -> str:
        """Why any is."""
        if not self.excused:
            return ""
        return self.case.reason or getattr(self.case.reference, "rounds", "")

    def worst(self, column: str) -> float:
        """Over the numbers of steps."""
        return max(getattr(errors, column) for errors in self.runs.values())


def main() -> int:
    """Run every case, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "sampler_parity.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # diffusers' deprecations
    rows = [Row(case, {steps: measure(case, steps) for steps in case.steps}) for case in CASES]
    differences = [_difference(each) for each in DIFFERENCES]
    summary = _summary(rows)
    _show(rows, differences, summary)
    _record(options.output, rows, differences, summary)
    return 1 if summary["outside"] or any(not each["differs"] for each in differences) else 0


def _difference(difference: Any) -> dict[str, Any]:
    """What diffusers defines otherwise, and by how much that shows."""
    found = difference.shown()
    return {
        "what": difference.what,
        "why": difference.why,
        "case": str(difference.case),
        "steps": difference.steps,
        "error": float(f"{found:.2e}") if isfinite(found) else "NaN",
        "differs": not found <= TOLERANCE32,
    }


def _summary(rows: list[Row]) -> dict[str, Any]:
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
    return sorted({errors.oracle for _, _, errors in runs})


def _worst(runs: list[Any], column: str) -> dict[str, Any]:
    row, steps, errors = max(runs, key=lambda run: getattr(run[2], column))
    return {"error": getattr(errors, column), "case": str(row.case), "steps": steps}


def _show(rows: list[Row], differences: list[dict[str, Any]], summary: dict[str, Any]) -> None:
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
    console.print("\nFurther from diffusers than 1e-5, and within the bound of the case:")
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
        f"{summary['beside_diffusers']} beside diffusers; oracles {summary['oracles']}"
    )
    for column in ("float32", "float64"):
        worst = summary[f"worst_{column}"]
        console.print(f"worst {column} {worst['error']:.1e}: {worst['case']}, N {worst['steps']}")
    if not find_spec("scipy"):
        console.print("without SciPy, diffusers' beta levels and its LMS were left out")


def _samplers(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.case.sampler for row in rows))


def _record(
    output: Path, rows: list[Row], differences: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Versions, the summary, and every case."""
    packages = (*PACKAGES, "scipy") if find_spec("scipy") else PACKAGES
    about = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in packages},
        "bounds": {"float32": TOLERANCE32, "float64": TOLERANCE64},
    }
    lines = [_line(row) for row in rows]
    head = {"about": about, "summary": summary, "differs_by_definition": differences}
    body = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    output.write_text(
        json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "cases": [\n{body}\n ]\n}}\n'
    )


def _line(row: Row) -> dict[str, Any]:
    """A case with its errors, one for each number of steps."""
    names = ("sampler", "schedule", "prediction", "reference")
    errors = row.runs.values()
    return {
        **dict(zip(names, row.case.columns(), strict=True)),
        "oracle": next(iter(errors)).oracle,
        "steps": list(row.runs),
        "float32": [float(f"{each.float32:.1e}") for each in errors],
        "float64": [float(f"{each.float64:.1e}") for each in errors],
        "within": not row.outside,
        **({"reason": row.reason} if row.excused else {}),
    }


if __name__ == "__main__":
    sys.exit(main())
