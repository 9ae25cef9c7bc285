"""Peers with a pipeline of diffusers' kind around another engine, where they are installed.

    python -m eri_export.bench.optimum_worker      lines of JSON in, lines of JSON out

Variants: `onnx`, optimum-onnx with ONNX Runtime's CPU provider; `openvino`, optimum-intel. Both
export the checkpoint by themselves when they are opened, which their `open_s` therefore holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from eri_export.bench.calls import HARNESS_S, DiffusersDrawer
from eri_runtime.bench.serve import Drawer, Opened, Setup, serve
from eri_runtime.errors import UnknownNameError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("optimum-onnx", "onnxruntime"),
    "openvino": ("optimum-intel", "openvino"),
}


def make(setup: Setup) -> tuple[Drawer, Opened]:
    """Export and load; raises `ImportError` where the peer is not installed."""
    if setup.variant not in PACKAGES:
        expected = " or ".join(f"optimum-{name}" for name in PACKAGES)
        raise UnknownNameError("--peers", got=repr(setup.variant), expected=expected)
    torch.set_num_threads(setup.threads)
    pipe = {"onnx": _onnx, "openvino": _openvino}[setup.variant](setup)
    pipe.set_progress_bar_config(disable=True)
    versions = {name: version(name) for name in PACKAGES[setup.variant]}
    words = ", ".join(f"{name} {found}" for name, found in versions.items())
    return DiffusersDrawer(pipe), Opened(
        words=f"{words}, threads {setup.threads}",
        precision="fp32",
        versions=versions,
        harness_s=HARNESS_S,
    )


def _onnx(setup: Setup) -> Any:
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    return ORTDiffusionPipeline.from_pretrained(
        setup.checkpoint, export=True, provider="CPUExecutionProvider", session_options=options
    )


def _openvino(setup: Setup) -> Any:
    from optimum.intel import OVDiffusionPipeline

    config = {"INFERENCE_NUM_THREADS": setup.threads, "INFERENCE_PRECISION_HINT": "f32"}
    return OVDiffusionPipeline.from_pretrained(
        setup.checkpoint, export=True, load_in_8bit=False, ov_config=config
    )


if __name__ == "__main__":
    serve(make)
