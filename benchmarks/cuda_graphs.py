"""Counts the nodes and kernels of every graph on ONNX Runtime's CUDA provider, without a GPU.

    make test-cuda-stand-in       builds what this needs, and tests against its results
    make cuda-graphs              runs this

The real CUDA provider of onnxruntime-gpu places the nodes, adds its copies and picks the kernels.
The driver below it is a stand-in (tests/support/cuda_stand_in), whose kernels are counted and
compute nothing: there is no time here, and nothing about accuracy. The networks are the tests'
tiny ones. Writes benchmarks/results/cuda_graphs.json; where a graph does not open, `refused` says
why.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from eri_export.publishing.export_bundle import WITH_FORMS
from eri_runtime.commands.subcommand import say
from eri_runtime.errors import BackendError
from tests.support.cuda_stand_in.cases import COMPONENT_CASES, STEP_CASES, Case, Exports, Opened
from tests.support.cuda_stand_in.device import Device
from tests.support.cuda_stand_in.measure import Measured, run_component, run_step

RESULTS = Path(__file__).parent / "results" / "cuda_graphs.json"
BUILD = Path(__file__).parents[1] / "build" / "cuda_stand_in"
Row = dict[str, Any]


def main() -> None:
    """Measures every graph, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    ort.set_default_logger_severity(4)  # the table says why a graph does not open
    with tempfile.TemporaryDirectory() as folder:
        graphs = list(measured(Path(folder)))
    rows = ",\n".join(f"  {json.dumps(graph)}" for graph in graphs)
    head = f'{{\n "onnxruntime": {json.dumps(ort.__version__)},\n "graphs": [\n'
    options.output.write_text(f"{head}{rows}\n ]\n}}\n", encoding="utf-8")
    for line in table(graphs):
        say(line)


def measured(folder: Path) -> Iterator[Row]:
    """Yields one row for each component and each step graph."""
    device, exports = Device(BUILD / "lib"), Exports(folder, BUILD / "traces")

    def row(graph: str, case: Case, run: Callable[[Device, Opened, Path], Measured]) -> Row:
        try:
            return {"graph": graph, **counts(run(device, exports(case), folder))}
        except BackendError as error:
            return {"graph": graph, "refused": reason(error)}

    yield from (row(str(case), case, run_component) for case in _both(COMPONENT_CASES))
    yield from (row(f"{case}-step", case, run_step) for case in _both(STEP_CASES))


def _both(cases: Iterable[Case]) -> Iterator[Case]:
    """Yields every case, after it without its CUDA form, if it has one."""
    for case in cases:
        if case.component in WITH_FORMS:
            yield replace(case, plain=True)
        yield case


def counts(measured: Measured) -> Row:
    """Returns the figures of one run."""
    placed, counted = measured.placement, measured.counts
    return {
        "on_cuda": placed.on_cuda,
        "on_host": sum(placed.on_host.values()),
        "copy_nodes": placed.copies,
        "kernels": counted["KERNELS"],
        "bytes_to_device": counted["BYTES_TO_DEVICE"],
        "bytes_to_host": counted["BYTES_TO_HOST"],
    }


def reason(error: BackendError) -> str:
    """Returns the last sentence of what ONNX Runtime says, without its own files and functions."""
    return error.got.strip().rpartition(" was false. ")[2]


def table(graphs: list[Row]) -> Iterator[str]:
    """Yields the rows as a Markdown table."""
    yield "| graph | nodes on CUDA | on the host | copies | kernels |"
    yield "|---|---|---|---|---|"
    for each in graphs:
        if "refused" in each:
            yield f"| {each['graph']} | does not open: {each['refused']} | | | |"
            continue
        counts = (each[name] for name in ("on_cuda", "on_host", "copy_nodes", "kernels"))
        yield f"| {each['graph']} | {' | '.join(map(str, counts))} |"


if __name__ == "__main__":
    main()
