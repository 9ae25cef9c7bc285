"""The engines behind one interface: ONNX Runtime, OpenVINO and TensorRT.

`base` defines an open component, `step_graph` an open step graph, `step_form` what the two forms of
step graphs take, and `backend` what opens all of them.
`choice` picks a backend, and `thread_count` how many threads of the `processor` it uses. Each
engine has its own folder, and only that folder imports its library.
`pinned` opens everything, and sees to it that nothing of damaged or changed files is given out.
`parted_denoiser` is the denoiser cut at its first block, for step caching.
`sequential_offload` runs a component one segment at a time, `onnx_weights` hands an engine weights
that lie elsewhere, `onnx_linear_weights` finds those of linear layers, `onnx_message` reads and
writes ONNX files, and `heap` gives freed memory back. Uses `bundle`, `sampling`, `checks`,
`control_groups`, `partial_files` and `unfinished`. Start with `base`, then `ort`.
"""

from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import (
    FROM_FILE,
    Arrays,
    Closeable,
    Executor,
    Refittable,
    Settings,
    changed_tensors,
    check_inputs,
)
from eri_runtime.executors.choice import (
    BACKENDS,
    Engine,
    backend_name,
    choose,
    describe_backends,
    engine_description,
    hashes_of,
    refusals,
    step_cache_refusal,
)
from eri_runtime.executors.heap import trim_heap
from eri_runtime.executors.nvidia_driver import compute_capability
from eri_runtime.executors.openvino.backend import OPENVINO
from eri_runtime.executors.ort.backend import CPU
from eri_runtime.executors.ort.session import OrtExecutor
from eri_runtime.executors.parted_denoiser import FirstBlock, PartedDenoiser
from eri_runtime.executors.processor import cores, usable_cores
from eri_runtime.executors.sequential_offload import SegmentedExecutor
from eri_runtime.executors.step_form import Layout, even_layout
from eri_runtime.executors.step_graph import Array, HeldLatents, Latents, Row, StepLoop, Stepper
from eri_runtime.executors.tensorrt.library import Library, load_library
from eri_runtime.executors.thread_count import Threads

__all__ = [
    "BACKENDS",
    "CPU",
    "FROM_FILE",
    "OPENVINO",
    "Array",
    "Arrays",
    "Backend",
    "Closeable",
    "Engine",
    "Executor",
    "FirstBlock",
    "HeldLatents",
    "Latents",
    "Layout",
    "Library",
    "OrtExecutor",
    "PartedDenoiser",
    "Refittable",
    "Row",
    "SegmentedExecutor",
    "Settings",
    "StepLoop",
    "Stepper",
    "Threads",
    "backend_name",
    "changed_tensors",
    "check_inputs",
    "choose",
    "compute_capability",
    "cores",
    "describe_backends",
    "engine_description",
    "even_layout",
    "hashes_of",
    "load_library",
    "refusals",
    "step_cache_refusal",
    "trim_heap",
    "usable_cores",
]
