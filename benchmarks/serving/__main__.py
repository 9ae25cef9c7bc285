"""Measures three ways to serve on the same bundles, in turns, under the same random load.

    eri demo
    python -m benchmarks.serving engines/demo [--large build/vs] [--only "more than 100 M"]

For the embedded checkpoint, and one of more than 100 million random weights, on ONNX Runtime and
OpenVINO: a burst of small pictures gives throughput, and an open-loop Poisson load at 80 % of what
one request at a time can do gives latencies. The three servers take turns, in `ROUNDS` rounds whose
medians are kept. Writes `benchmarks/results/serving.json`, with the goals beside the ratios; rows
that are not measured anew stay. Ratios are of one row, which is of one run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lora_swap import machine
from benchmarks.serving.load import Arrival, draw
from benchmarks.serving.overhead import overheads
from benchmarks.serving.servers import SERVERS, summary
from benchmarks.vs_pytorch import make, settle
from eri_runtime.bench.environment import versions
from eri_runtime.commands.subcommand import say

RESULTS = Path(__file__).parents[1] / "results" / "serving.json"
ONE, WINDOWS, OURS = SERVERS
ROUNDS = 3
LOAD = 0.8  # of what one request at a time can do
GOALS: Mapping[str, str] = {
    "short p99 beside long ones, of one at a time": "<= 0.35",
    "throughput of small pictures, of one at a time": ">= 1.1",
    "throughput of small pictures, of windows": ">= 1.0",
}


@dataclass(frozen=True)
class Load:
    """What is asked of a bundle.

    Attributes:
        small: The side of small pictures.
        sizes: The sides of the open-loop load.
        steps: The numbers of steps to draw from.
        requests: Number of requests of the open-loop load.
        burst: Number of requests of the burst.
    """

    small: int
    sizes: Sequence[int]
    steps: Sequence[int]
    requests: int
    burst: int


LARGE = "more than 100 M"
LOADS: Mapping[str, Load] = {
    "embedded": Load(48, (64, 96), (4, 8, 20, 50), 60, 120),
    LARGE: Load(128, (128, 256), (4, 8, 20), 16, 8),
}


def main() -> int:
    """Measures and writes the results; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle of the embedded SD3.5")
    parser.add_argument("--large", type=Path, metavar="FOLDER", help="where the large one is made")
    parser.add_argument("--backends", nargs="+", default=["cpu", "openvino"])
    parser.add_argument("--only", choices=[*LOADS, "overhead"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    bundles = {"embedded": options.bundle}
    if options.large:
        bundles[LARGE] = make("sd35", options.large)[1]
    about = {"machine": machine(), "versions": versions(("onnxruntime", "openvino", "numpy"))}
    record = Record.read()
    if options.only in (None, "overhead"):
        record.overhead = {**about, **overheads(options.bundle)}
        say(json.dumps(record.overhead))
        record.write()
    chosen = [name for name in bundles if options.only in (None, name)]
    for name, backend in product(chosen, options.backends):
        settle(60)
        row = {"bundle": name, "backend": backend, **about, "rounds": options.rounds}
        row |= measured(bundles[name], backend, LOADS[name], options.rounds)
        say(json.dumps(row))
        record.rows[name, backend] = row
        record.write()
    return 0


@dataclass
class Record:
    """The results: a row for each bundle and backend, and what serving adds."""

    rows: dict[tuple[str, str], dict[str, Any]]
    overhead: dict[str, Any]

    @classmethod
    def read(cls) -> Record:
        """Reads the results of earlier runs."""
        if not RESULTS.exists():
            return cls({}, {})
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        rows = {(row["bundle"], row["backend"]): row for row in found["rows"]}
        return cls(rows, found["overhead"])

    def write(self) -> None:
        """Writes all results."""
        found = {"goals": GOALS, "rows": [*self.rows.values()], "overhead": self.overhead}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(bundle: Path, backend: str, load: Load, rounds: int) -> dict[str, Any]:
    """Measures a bundle on a backend: bursts of small pictures, then the open-loop load."""
    burst = draw(load.burst, math.inf, (load.small,), load.steps)
    bursts = in_turns(bundle, backend, burst, rounds)
    probe = draw(load.requests // 4, math.inf, load.sizes, load.steps, seed=1)
    alone = summary(SERVERS[ONE](bundle, backend, probe))["pictures_per_minute"]
    rate = LOAD * alone / 60
    arrivals = draw(load.requests, rate, load.sizes, load.steps, seed=2)
    opened = in_turns(bundle, backend, arrivals, rounds)
    return {
        "small_burst": _medians(bursts),
        "open_loop": {"requests_per_s": round(rate, 3), **_medians(opened)},
        "ratios": {
            "short p99 beside long ones, of one at a time": _ratio(
                opened, OURS, ONE, "short_latency_s", "p99"
            ),
            "short p99 beside long ones, of windows": _ratio(
                opened, OURS, WINDOWS, "short_latency_s", "p99"
            ),
            "throughput of small pictures, of one at a time": _ratio(
                bursts, OURS, ONE, "pictures_per_minute"
            ),
            "throughput of small pictures, of windows": _ratio(
                bursts, OURS, WINDOWS, "pictures_per_minute"
            ),
        },
    }


Rounds = Sequence[Mapping[str, Any]]


def in_turns(bundle: Path, backend: str, load: Sequence[Arrival], rounds: int) -> Rounds:
    """Serves a load with every server in each round."""
    return [
        {name: summary(serve(bundle, backend, load)) for name, serve in SERVERS.items()}
        for _ in range(rounds)
    ]


def _value(row: Any, path: Sequence[str]) -> float:
    for name in path:
        row = row[name]
    return float(row)


def _ratio(rounds: Rounds, ours: str, theirs: str, *path: str) -> float:
    """Returns the median over the rounds of the ratio of two servers' numbers."""
    ratios = [_value(each[ours], path) / _value(each[theirs], path) for each in rounds]
    return round(median(ratios), 3)


def _medians(rounds: Rounds) -> dict[str, Any]:
    """Returns the medians of every number over the rounds."""

    def of(rows: Sequence[Any]) -> Any:
        if isinstance(rows[0], Mapping):
            return {name: of([each[name] for each in rows]) for name in rows[0]}
        return round(median(rows), 3)

    return dict(of(rounds))


if __name__ == "__main__":
    sys.exit(main())
