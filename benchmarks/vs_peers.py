"""Compares each family with the engines that other people's software runs on, in one run.

    make peers
    python -m benchmarks.vs_peers build/vs [--families sdxl sd35 flux] [--rounds 8]

The checkpoints and bundles are those of `benchmarks.vs_pytorch`. `eri bench` runs every backend of
ours, diffusers, OpenVINO GenAI, optimum-intel and optimum-onnx in turns: steps, whole pictures,
starts, peak memory, distances of pictures. `benchmarks.peer_costs` adds four processes at once, the
export and the size of the installation. Writes benchmarks/results/vs_peers-FAMILY.json and .html,
and vs_peers.json with the rest, a family after the other.

stable-diffusion.cpp is not among them: it builds its networks with the published sizes and cannot
load these smaller ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peer_costs import export_costs, install_sizes, process_costs
from benchmarks.vs_pytorch import PARTS, RESULTS, bench, make, settle, verdict
from eri_runtime.bench.environment import machine, software
from eri_runtime.bench.peers import peer_names
from eri_runtime.bench.record import Record
from eri_runtime.bench.statistics import STEP, WHOLE
from eri_runtime.bench.summary import COLD, Best, best_comparisons

WAYS = ("eager", "bf16")
GOALS = {STEP: 0.8, WHOLE: 0.8, COLD: 0.8}  # of the best peer, at equal precision


def main() -> None:
    """Measures every family and compares it with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--families", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--steps", type=int, default=3)
    add("--rounds", type=int, default=8)
    add("--cold", type=int, default=2)
    add("--no-costs", action="store_true", help="run `eri bench` only")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args()
    words = ["--torch", *WAYS, "--peers", *peer_names()]
    for family in options.families:
        record = bench(family, options, f"vs_peers-{family}", words)
        for line in verdicts(record):
            sys.stdout.write(f"{family}: {line}\n")
        if not options.no_costs:
            add_costs(options.results / "vs_peers.json", family, options.folder)
        sys.stdout.flush()


def add_costs(file: Path, family: str, folder: Path) -> None:
    """Measures what `eri bench` does not, and puts it into the results of all families."""
    checkpoint, bundle = make(family, folder)
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        exports = export_costs(family, checkpoint, Path(work))
        settle()
        processes = process_costs(family, checkpoint, bundle, Path(work))
    families = found.get("families", {}) | {family: {"export": exports, "processes": processes}}
    facts = {
        "machine": asdict(machine()),
        "software": asdict(software()),
        "installation_bytes": install_sizes(),
        "families": families,
    }
    file.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


def verdicts(record: Record) -> Iterator[str]:
    """Yields a line for each figure and precision, and for each row that does not count."""
    for best in best_comparisons(record):
        if best.figure in GOALS and is_peer(record, best):
            words = verdict(best, GOALS[best.figure])
            yield f"{best.figure}, {best.claim}, {best.label}: {words}"
    for row in record.rows:
        if not row.counts:
            yield f"{row.subject} does not count: {row.reason}"


def is_peer(record: Record, best: Best) -> bool:
    """Returns whether a comparison is with a peer."""
    return any(each.name == best.theirs and each.kind == "peer" for each in record.subjects)


if __name__ == "__main__":
    main()
