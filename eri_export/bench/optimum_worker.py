"""The worker of Optimum: diffusers-like pipelines on ONNX Runtime or OpenVINO, if installed.

`python -m eri_export.bench.optimum_worker` reads and writes lines of JSON.

Variants: `onnx`, optimum-onnx with ONNX Runtime's CPU provider; `openvino`, optimum-intel. Both
export the checkpoint when they open it, so their `open_s` includes the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from eri_export.bench.diffusers_calls import HARNESS_S, DiffusersDrawer
from eri_runtime.bench.worker_server import Drawer, Opened, Setup, serve
from eri_runtime.errors import UnknownNameError, short

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("optimum-onnx", "onnxruntime"),
    "openvino": ("optimum-intel", "openvino"),
}


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Exports and loads a checkpoint; raises ImportError if the peer is not installed."""
    if setup.variant not in PACKAGES:
        expected = " or ".join(f"optimum-{name}" for name in PACKAGES)
        raise UnknownNameError("--peers", got=short(setup.variant), expected=expected)
    torch.set_num_threads(setup.threads)
    pipe = {"onnx": _onnx, "openvino": _openvino}[setup.variant](setup)
    pipe.set_progress_bar_config(disable=True)
    versions = {name: version(name) for name in PACKAGES[setup.variant]}
    words = ", ".join(f"{name} {number}" for name, number in versions.items())
    return DiffusersDrawer(pipe), Opened(
        words=f"{words}, threads {setup.threads}",
        precision="fp32",
        versions=versions,
        harness_s=HARNESS_S,
    )


def _onnx(setup: Setup) -> Any:
    """Opens optimum-onnx's pipeline."""
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    return ORTDiffusionPipeline.from_pretrained(
        setup.checkpoint, export=True, provider="CPUExecutionProvider", session_options=options
    )


def _openvino(setup: Setup) -> Any:
    """Opens optimum-intel's pipeline."""
    from optimum.intel import OVDiffusionPipeline

    config = {"INFERENCE_NUM_THREADS": setup.threads, "INFERENCE_PRECISION_HINT": "f32"}
    return OVDiffusionPipeline.from_pretrained(
        setup.checkpoint, export=True, load_in_8bit=False, ov_config=config
    )


if __name__ == "__main__":
    serve(make)
