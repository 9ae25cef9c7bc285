"""Every check that needs a GPU, with whatever is installed: one results file and a table.

    python -m benchmarks.gpu                                   on a machine with an NVIDIA GPU
    python -m benchmarks.gpu --device cpu --models tiny        the same code, without one

The method is in benchmarks/README.md. Exit status 1 if a row is an error or its parity failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks.gpu.environment import environment
from benchmarks.gpu.jobs import Runner, apart, jobs_of, run_all
from benchmarks.gpu.record import STATES, VERSION, failed, write
from benchmarks.gpu.settings import GROUPS, MODELS, PARTS, Device, Part, Settings
from benchmarks.gpu.tables import show

RESULTS = Path(__file__).parents[1] / "results"
BACKENDS = {"cuda": ("cuda", "tensorrt", "tensorrt-rtx"), "cpu": ("cpu",)}


def main(arguments: Sequence[str] | None = None, runner: Runner = apart) -> int:
    """Do every job, writing the results after each; the exit status."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(command)
    settings, parts = _settings(options), _parts(options.parts)
    about, console = environment(settings, command), Console()
    jobs, rows = jobs_of(settings, parts), list[dict[str, Any]]()
    for number, made in enumerate(run_all(jobs, settings, options.budget, runner), start=1):
        rows += made
        record = {
            "version": VERSION,
            "about": about,
            "settings": settings.to_json(),
            "finished": number == len(jobs),
            "rows": rows,
        }
        write(options.output, record)
        console.print(f"{number}/{len(jobs)} {jobs[number - 1]}: {_states(made)}")
    show(rows, console)
    return 1 if failed(rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    models = [*GROUPS, *MODELS]
    add("--device", choices=get_args(Device), default="cuda")
    add("--models", nargs="+", choices=models, default=["tiny", "sdxl", "sd35", "flux"])
    add("--backends", nargs="+", help="cuda, tensorrt and tensorrt-rtx, or cpu, if left")
    add("--torch", nargs="*", choices=["eager", "compile"], default=["eager", "compile"])
    add("--sizes", nargs="+", type=int, default=[], help="pixels a side of full-size models; 1024")
    add("--steps", type=int, default=4, help="of each trajectory")
    add("--rounds", type=int, default=10, help="of each latency, all subjects in turn")
    add("--seconds", type=float, default=60, help="at most, for the rounds of one model")
    add("--budget", type=float, default=3600, help="seconds; what is left then is skipped by name")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--folder", type=Path, default=Path("engines/gpu-benchmark"), help="of the bundles")
    add("-o", "--output", type=Path, default=RESULTS / "gpu.json")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    named = (GROUPS.get(name, (name,)) for name in options.models)
    return Settings(
        device=options.device,
        models=tuple(dict.fromkeys(name for group in named for name in group)),
        backends=tuple(options.backends or BACKENDS[options.device]),
        torch=tuple(options.torch),
        sizes=tuple(options.sizes),
        steps=options.steps,
        rounds=options.rounds,
        seconds=options.seconds,
        folder=options.folder,
    )


def _parts(named: Sequence[Part]) -> tuple[Part, ...]:
    """Those named, and the bundles that all of them need, which are made once."""
    return tuple(part for part in PARTS if part in named or part in ("bundle", "plan"))


def _states(rows: Sequence[dict[str, Any]]) -> str:
    counts = {state: sum(row["status"] == state for row in rows) for state in STATES}
    counts |= {"outside its limit": len(failed(rows)) - counts["error"]}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no rows"


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
