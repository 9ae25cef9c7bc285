"""Runs a graph on ONNX Runtime a part at a time, so that one part's weights are in memory.

Each part is opened once and run on every case before the next one is opened. The graph's own values
pass from part to part, so the outputs have the error of the whole graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from eri_export.gate.segments import part_paths
from eri_export.gate.step_graph import PAGED
from eri_export.gate.subjects import temporary
from eri_export.graphs.passes.split_segments import cut, segment_spec
from eri_export.graphs.recipes.base import Arrays
from eri_runtime.bundle import ComponentSpec, SegmentSpec
from eri_runtime.executors import FROM_FILE
from eri_runtime.executors.ort.engine_errors import OrtErrors
from eri_runtime.executors.ort.provider import CPU_PROVIDER
from eri_runtime.executors.ort.session import open_session

LEAST = 4  # nodes of a part: a layer with its bias and shapes


@contextlib.contextmanager
def graph_parts(graph: Path, spec: ComponentSpec, parts: int) -> Iterator[ComponentSpec]:
    """Yields `spec` with segments: `graph` in at most `parts` temporary files beside it."""
    folder, segments = spec.graph.rpartition("/")[0], list[SegmentSpec]()
    with contextlib.ExitStack() as files:
        for index, part in enumerate(cut(ir.load(graph), parts, LEAST)):
            path = graph.with_name(f".{graph.stem}-{index:03}.part.onnx")
            files.enter_context(temporary(part, path))
            segments.append(segment_spec(part, f"{folder}/{path.name}"))
        yield dataclasses.replace(spec, segments=tuple(segments))


def run_parts(
    graph: Path, spec: ComponentSpec, cases: Sequence[Arrays], outputs: Sequence[str]
) -> list[dict[str, NDArray[Any]]]:
    """Returns these outputs of each case; `spec` is what `graph_parts` yields for `graph`."""
    live = [dict(inputs) for inputs in cases]
    last = {name: i for i, part in enumerate(spec.segments) for name in part.inputs}
    last |= dict.fromkeys(outputs, len(spec.segments))
    paths = part_paths(graph, spec.segments)
    for index, (path, part) in enumerate(zip(paths, spec.segments, strict=True)):
        session = open_session(path, spec, CPU_PROVIDER, PAGED, {}, FROM_FILE, arena=False)
        for values in live:
            with OrtErrors(path, "runs"):
                made = session.run(part.outputs, {name: values[name] for name in part.inputs})
            values |= zip(part.outputs, made, strict=True)
            for name in [each for each in values if last.get(each, -1) <= index]:
                del values[name]
        del session  # frees its weights before the next part is opened
    return [{name: values[name] for name in outputs} for values in live]
