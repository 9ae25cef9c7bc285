"""ONNX Runtime's execution providers: what each requires, cannot run, and is opened with."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from eri_runtime.bundle import ComponentSpec, Precision
from eri_runtime.executors.base import Settings
from eri_runtime.executors.nvidia_driver import compute_capability
from eri_runtime.executors.ort.cuda_libraries import missing_libraries
from eri_runtime.install_hint import install_hint

# The oldest that is known to be right. Older ones have no CUDA kernel for Attention (1.24), or use
# the host memory that a captured graph reads for other runs (microsoft/onnxruntime pull 32121).
OLDEST_GPU = (1, 31)


DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        name: Its name in ONNX Runtime.
        device: The device of its tensors, `cpu` or `cuda`.
        extra: The extra of this project that installs it.
        lacks: Why it cannot run a precision, by precision.
        options: Its provider options.
        copying: Optimizers that copy weights; `Settings.low_memory` turns them off.
        disabled: Optimizers that are always off.
    """

    name: str
    device: str
    extra: str
    lacks: Mapping[Precision, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    copying: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()

    def without(self, settings: Settings) -> tuple[str, ...]:
        """Returns the optimizers that a session does without."""
        return (*self.disabled, *(self.copying if settings.low_memory else ()))

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component cannot run on this machine, in a few words, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed: {install_hint(self.extra)}"
        if reason := self.lacks.get(spec.precision):
            return reason
        return _cuda_refusal() if self.device == "cuda" else None

    def words(self, settings: Settings) -> str:
        """Describes the provider and every option of a session, in one line."""
        entries, threads = session_entries(self, settings), settings.threads or "all cores"
        options = {**self.options, **entries, "threads": threads}
        if without := self.without(settings):
            options["without"] = " and ".join(without)
        return f"{self.name}, " + ", ".join(f"{name} {value}" for name, value in options.items())


CPU_PROVIDER = Provider(
    name="CPUExecutionProvider",
    device="cpu",
    extra="cpu",
    copying=("ConstantFolding", "NchwcTransformer"),  # copy transposed and blocked weights
    lacks={
        "bf16": "ONNX Runtime's CPU kernels have no bfloat16: export with --precision fp32 or fp16"
    },
)
# An arena that doubles can take twice the weights. Constants are not folded: that would transpose
# every weight on the CPU for each session, and CUDA's kernels take weights as they are.
# Slices are not joined to a Split: its kernel for unequal parts reads host memory, which a captured
# graph may not (the exporter's `graphs/passes/cuda/parts.py`).
# `fuse_conv_bias` stays off: with it ONNX Runtime 1.31.1 adds to a convolution what lies where the
# first run's output lay.
# ONNX Runtime's default, a search that times every algorithm of a convolution, picked kernels
# without tensor cores for most of SDXL's: a step took 135 ms on an H200, and 36 ms with cuDNN's
# heuristic (`benchmarks/results/gpu.json`).
CUDA_PROVIDER = Provider(
    name="CUDAExecutionProvider",
    device="cuda",
    extra="gpu",
    options={
        "device_id": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    },
    disabled=("ConstantFolding", "GatherSliceToSplitFusion"),
)
# TF32 rounds the factors of float32 products to 11 bits, as PyTorch's convolutions do by default
CUDA_TF32_PROVIDER = replace(CUDA_PROVIDER, options={**CUDA_PROVIDER.options, "use_tf32": "1"})


def form_of(graph: Path, device: str) -> Path:
    """Returns where the exporter writes a graph's form for a device: `step.cuda.onnx`."""
    return graph.with_suffix(f".{device}.onnx")


def graph_for(graph: Path, device: str) -> Path:
    """Returns the form of a graph for a device if there is one, else the graph.

    For a graph of no manifest; `OrtBackend.graph_file` asks the manifest.
    """
    form = form_of(graph, device)
    return form if form.exists() else graph


def is_form(graph: Path, device: str) -> bool:
    """Returns whether a graph is the form of another for a device."""
    return graph.name.endswith(f".{device}.onnx")


def session_entries(provider: Provider, settings: Settings) -> dict[str, str]:
    """Returns the session's config entries.

    Threads that wait for work of the next call of one session would take cores from the call of
    another, so they sleep between calls.

    Prepacked weights are copies. With `low_memory` prepacking is off, so weights stay file pages.
    Not on CUDA, where weights are copied to the device: there the convolutions of a CUDA form
    read weights that are packed with channels last, and would read others wrongly with no error.
    """
    unpacked = settings.low_memory and provider.device == "cpu"
    entries = {"session.force_spinning_stop": "1"}
    return entries | ({"session.disable_prepacking": "1"} if unpacked else {})


def _cuda_refusal() -> str | None:
    """Returns why CUDA cannot be used here, or None.

    The reasons: a wheel without CUDA or an old one, no GPU, or a CUDA library that does not load.
    """
    import onnxruntime as ort

    if CUDA_PROVIDER.name not in ort.get_available_providers():
        return f"this onnxruntime has no CUDA: {install_hint('gpu')}"
    if tuple(map(int, ort.__version__.split(".")[:2])) < OLDEST_GPU:
        oldest = ".".join(map(str, OLDEST_GPU))
        return (
            f"onnxruntime-gpu {ort.__version__} is older than {oldest}: "
            f"{install_hint('gpu', upgrade=True)}"
        )
    if compute_capability() is None:
        return "no NVIDIA GPU"
    if missing := missing_libraries():
        return f"{'; '.join(missing)}: {install_hint('gpu')}"
    return None
