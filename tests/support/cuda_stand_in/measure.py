"""Runs a component on the stand-in once: where its nodes are placed, and how many kernels run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnxruntime as ort

from eri_runtime.executors.ort.backend import CUDA
from eri_runtime.sampling import MAX_W
from tests.support.cuda_stand_in.cases import Opened, trajectory
from tests.support.cuda_stand_in.device import Counts, Device

ON_CUDA = "CUDAExecutionProvider"
COPIES = frozenset({"MemcpyFromHost", "MemcpyToHost"})


@dataclass
class Placement:
    """The nodes of a session that ran once.

    Attributes:
        on_cuda: Number of nodes on the device.
        on_host: Operators of the nodes on the host, and how many of each.
        copies: Number of nodes that ONNX Runtime added to copy tensors between the two.
    """

    on_cuda: int = 0
    on_host: Counter[str] = field(default_factory=Counter)
    copies: int = 0


@dataclass(frozen=True)
class Measured:
    """One run of a component."""

    placement: Placement
    counts: Counts


def run_component(device: Device, opened: Opened, folder: Path) -> Measured:
    """Opens a component as `eri_runtime` does and runs it once; `folder` is for the profile."""
    with profiled(folder) as sessions, CUDA.executor(opened.graph, opened.spec) as executor:
        with device.counting() as counts:
            executor.run(opened.inputs())
        return Measured(placement(sessions[-1]), counts)


def run_step(device: Device, opened: Opened, folder: Path) -> Measured:
    """The same for one step of a step graph. The counts are those of the step alone.

    Nothing is captured: ONNX Runtime runs a graph three times to capture it.
    """
    drawn = trajectory(opened, 0, steps=1)
    with (
        profiled(folder, capture=False) as sessions,
        CUDA.stepper(opened.step, opened.spec) as stepper,
    ):
        loop = stepper.loop(drawn.x.shape, MAX_W)
        loop.bind("pass", drawn.mix, drawn.conditions, drawn.layout)
        begun = loop.begin(drawn.x, drawn.remembered)
        with device.counting() as counts:
            for _ in loop.run(drawn.rows, begun):
                pass
        return Measured(placement(sessions[-1]), counts)


def placement(session: Any) -> Placement:
    """Ends the profile of a session and reads where each of its nodes ran."""
    found = Placement()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        node = event.get("args", {})
        if event.get("cat") != "Node" or "provider" not in node:
            continue
        if node["op_name"] in COPIES:
            found.copies += 1
        elif node["provider"] == ON_CUDA:
            found.on_cuda += 1
        else:
            found.on_host[node["op_name"]] += 1
    return found


@contextmanager
def profiled(folder: Path, *, capture: bool | None = None) -> Iterator[list[Any]]:
    """The same as `noted_sessions`, each with a profile in the folder."""
    make_options = ort.SessionOptions

    def options() -> Any:
        made = make_options()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    patched = patch.object(ort, "SessionOptions", options)
    with patched, noted_sessions(capture=capture) as sessions:
        yield sessions


@contextmanager
def noted_sessions(
    options: Mapping[str, str] | None = None, *, capture: bool | None = None
) -> Iterator[list[Any]]:
    """Yields a list of the sessions that are opened within the block.

    `options` are the provider's, beside the caller's. `capture` says whether the sessions capture
    CUDA graphs; default: as the caller wants.
    """
    more = dict(options or {})
    if capture is not None:
        more["enable_cuda_graph"] = str(int(capture))
    make_session, sessions = ort.InferenceSession, list[Any]()

    def session(*arguments: Any, providers: Any, **others: Any) -> Any:
        made = make_session(
            *arguments, providers=[_with(each, more) for each in providers], **others
        )
        sessions.append(made)
        return made

    with patch.object(ort, "InferenceSession", session):
        yield sessions


def _with(provider: Any, more: Mapping[str, str]) -> Any:
    if not isinstance(provider, tuple) or provider[0] != ON_CUDA:
        return provider
    options: Mapping[str, str] = provider[1]
    return provider[0], {**options, **more}
