"""A stand-in for ONNX Runtime's CUDA provider: the CPU computes, and graphs replay as on CUDA.

A run with a graph id is captured the first time, per thread of a session. From then on the id is
that run on its buffers, whatever is bound: they are read and written again. The real library
does not notice when other buffers are bound; the stand-in raises, and so it does when two runs of a
session overlap, as they would share memory, or when another thread uses CUDA during a capture.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from eri_runtime.executors.ort import provider

REAL = ort.InferenceSession
FROM_NUMPY = ort.OrtValue.ortvalue_from_numpy
WARM_UPS = 2  # runs before the one that is captured


class Gpu:
    """The process's CUDA: the sessions that were opened, and the thread that captures."""

    def __init__(self):
        self.sessions = []
        self.refuses_capture = False
        self.on_cpu = False  # whether sessions fall back to the CPU without a word
        self.capturing = None

    def touch(self):
        """A call that must not be made while another thread captures."""
        assert self.capturing in (None, threading.get_ident()), "CUDA is used during a capture"

    @contextmanager
    def capture(self):
        self.capturing = threading.get_ident()
        try:
            yield
        finally:
            self.capturing = None


class Value:
    """An `OrtValue` on the device, which shares no memory with the host's array."""

    def __init__(self, gpu, array):
        gpu.touch()
        self.gpu, self.array = gpu, np.array(array, order="C")
        self.real = FROM_NUMPY(self.array)

    def update_inplace(self, data):
        self.gpu.touch()
        source = data.array if isinstance(data, Value) else data
        assert (source.shape, source.dtype) == (self.array.shape, self.array.dtype)
        np.copyto(self.array, source)

    def numpy(self):
        self.gpu.touch()
        return self.array.copy()


class Binding:
    """An `IOBinding`, and what is bound by name."""

    def __init__(self, session):
        self.session, self.real, self.values = session, session.real.io_binding(), {}

    def bind_ortvalue_input(self, name, value):
        self.real.bind_ortvalue_input(name, value.real)
        self.values[name] = value

    def bind_ortvalue_output(self, name, value):
        self.real.bind_ortvalue_output(name, value.real)
        self.values[name] = value


class Session:
    """An `InferenceSession` on the CUDA provider.

    Attributes:
        options: The provider's options.
        disabled: The optimizers that are off.
        captured: Bindings by thread and graph id.
        runs: The graph id of every run, in order.
    """

    def __init__(self, gpu, path, options, providers, disabled_optimizers):
        gpu.touch()
        ((self.name, self.options),) = providers
        self.gpu, self.disabled = gpu, tuple(disabled_optimizers)
        self.captures = self.options.get("enable_cuda_graph") == "1"
        if self.captures and gpu.refuses_capture:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user"
            )
        self.real = REAL(path, options, providers=["CPUExecutionProvider"])
        self.captured, self.runs, self.busy = {}, [], threading.Lock()
        gpu.sessions.append(self)

    def get_providers(self):
        return ["CPUExecutionProvider"] if self.gpu.on_cpu else [self.name, "CPUExecutionProvider"]

    def run(self, names, inputs):
        self.gpu.touch()
        return self.real.run(names, inputs)

    def io_binding(self):
        return Binding(self)

    def run_with_iobinding(self, binding, options=None):
        self.gpu.touch()
        assert binding.session is self
        assert self.busy.acquire(blocking=False), "two runs of a session share its memory"
        try:
            self._run(binding, options)
        finally:
            self.busy.release()

    def _run(self, binding, options):
        if not self.captures:
            self.real.run_with_iobinding(binding.real)
            return
        number = 0 if options is None else int(options.get_run_config_entry("gpu_graph_id"))
        self.runs.append(number)
        if number < 0:
            self.real.run_with_iobinding(binding.real)
            return
        assert number > 0, "ONNX Runtime reserves graph 0"
        key = threading.get_ident(), number
        if key not in self.captured:
            with self.gpu.capture():
                self.captured[key] = binding
                for _ in range(WARM_UPS):
                    self.real.run_with_iobinding(binding.real)
        replayed = self.captured[key]
        assert replayed.values == binding.values, f"graph {number} has other buffers"
        self.real.run_with_iobinding(replayed.real)


def install(monkeypatch):
    """Lets the backends `cuda` and `cuda:tf32` run on the stand-in; returns its `Gpu`."""
    made = Gpu()

    def from_numpy(array, device="cpu", number=0):
        return Value(made, array) if device == "cuda" else FROM_NUMPY(array, device, number)

    def session(path, options, *, providers, disabled_optimizers):
        if providers[0][0] != provider.CUDA_PROVIDER.name:
            return REAL(path, options, providers=providers, disabled_optimizers=disabled_optimizers)
        plain = Path(path.replace(".cuda.onnx", ".onnx"))  # of the same results, with kernels here
        here = str(provider.graph_for(plain, "cpu"))
        return Session(made, here, options, providers, disabled_optimizers)

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", from_numpy)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider.CUDA_PROVIDER.name])
    monkeypatch.setattr(provider, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(provider, "missing_libraries", tuple)
    return made
