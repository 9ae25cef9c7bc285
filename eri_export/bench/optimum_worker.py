"""The worker of the peers: engines that run a checkpoint which Optimum has converted for them.

`python -m eri_export.bench.optimum_worker` reads and writes lines of JSON, in the environment that
`make peers` makes.

Variants: `optimum-onnx` (diffusers' pipelines on ONNX Runtime), `optimum-intel` (the same on
OpenVINO) and `openvino-genai` (OpenVINO's own pipelines, without torch). The last two take `+bf16`.
The conversion is a request of its own, so it is in no figure of a start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

started = time.perf_counter()
from eri_export.bench.older_tokenizers import with_older_tokenizers  # noqa: E402
from eri_runtime.bench.peers import BF16, check_peer  # noqa: E402
from eri_runtime.bench.worker_server import Drawer, Opened, Setup, serve  # noqa: E402

HARNESS_S = time.perf_counter() - started  # a peer alone would not import the runtime


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a peer is run: the packages that it is made of, its format, and what opens it."""

    packages: tuple[str, ...]
    format: str
    open: Callable[[Setup, Path, str], tuple[Drawer, float]]


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Opens the converted checkpoint; raises ImportError if the peer is not installed."""
    peer, precision = peer_of(setup)
    drawer, harness_s = peer.open(setup, converted(setup, peer), precision)
    versions = {name: version(name) for name in peer.packages}
    words = ", ".join(f"{name} {number}" for name, number in versions.items())
    return drawer, Opened(
        words=f"{words}, {precision}, threads {setup.threads}",
        precision=precision,
        versions=versions,
        harness_s=HARNESS_S + harness_s,
    )


def peer_of(setup: Setup) -> tuple[Peer, str]:
    """Returns the peer of a setup and its precision; raises UnknownNameError if there is none."""
    name = check_peer(setup.variant)
    return PEERS[name.removesuffix(BF16)], "bf16" if name.endswith(BF16) else "fp32"


def converted(setup: Setup, peer: Peer) -> Path:
    """Returns the folder of the checkpoint in the peer's format."""
    return Path(setup.folder) / f"converted-{peer.format}"


def convert(setup: Setup) -> bool:
    """Converts the checkpoint with Optimum's command; returns False if a peer of this run has."""
    peer, _ = peer_of(setup)
    for name in peer.packages:
        version(name)  # raises PackageNotFoundError, which is an ImportError
    folder = converted(setup, peer)
    if folder.is_dir():
        return False
    partial, source = (folder.with_name(f"{folder.name}-{end}") for end in ("partial", "source"))
    checkpoint = with_older_tokenizers(Path(str(setup.checkpoint)), source)
    command = ["-m", "optimum.commands.optimum_cli", "export", peer.format]
    arguments = ["--model", str(checkpoint), "--task", "text-to-image", str(partial)]
    options = ["--weight-format", "fp32"] if peer.format == "openvino" else []
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command, *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no reason"])[-1]
        raise RuntimeError(f"Optimum's conversion to {peer.format} failed: {last}")
    partial.rename(folder)
    return True


def _onnx(setup: Setup, folder: Path, _precision: str) -> tuple[Drawer, float]:
    """Opens optimum-onnx's pipeline."""
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    return _diffusers(
        setup,
        ORTDiffusionPipeline.from_pretrained(
            folder, provider="CPUExecutionProvider", session_options=options
        ),
    )


def _intel(setup: Setup, folder: Path, precision: str) -> tuple[Drawer, float]:
    """Opens optimum-intel's pipeline."""
    from optimum.intel import OVDiffusionPipeline

    return _diffusers(
        setup, OVDiffusionPipeline.from_pretrained(folder, ov_config=_config(setup, precision))
    )


def _diffusers(setup: Setup, pipe: Any) -> tuple[Drawer, float]:
    """Returns what calls a pipeline with diffusers' words, and the seconds of our own imports."""
    import torch

    from eri_export.bench.diffusers_calls import HARNESS_S as IMPORTS_S
    from eri_export.bench.diffusers_calls import DiffusersDrawer

    torch.set_num_threads(setup.threads)
    pipe.set_progress_bar_config(disable=True)
    return DiffusersDrawer(pipe), IMPORTS_S


def _genai(setup: Setup, folder: Path, precision: str) -> tuple[Drawer, float]:
    """Opens OpenVINO GenAI's pipeline."""
    from eri_export.bench.genai_drawer import GenaiDrawer

    return GenaiDrawer(folder, _config(setup, precision)), 0.0


def _config(setup: Setup, precision: str) -> dict[str, Any]:
    """Returns OpenVINO's properties for the threads and the precision of a setup."""
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    return {"INFERENCE_NUM_THREADS": setup.threads, "INFERENCE_PRECISION_HINT": hint}


OPENVINO = ("openvino", "optimum-intel")
PEERS: Mapping[str, Peer] = {
    "optimum-onnx": Peer(packages=("optimum-onnx", "onnxruntime"), format="onnx", open=_onnx),
    "optimum-intel": Peer(packages=OPENVINO, format="openvino", open=_intel),
    "openvino-genai": Peer(
        packages=("openvino-genai", "openvino-tokenizers", *OPENVINO), format="openvino",
        open=_genai,
    ),
}  # fmt: skip


if __name__ == "__main__":
    serve(make, convert)
