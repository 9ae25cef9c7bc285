"""A stand-in for TensorRT and CUDA's runtime: the same names in host memory, the ONNX graph for a
plan, and ONNX Runtime's CPU for the kernels.

It proves how the executor calls them, and nothing about a GPU. It is strict where that can show a
mistake: a stream does nothing until it is waited for, device memory begins and ends as NaN, every
address must lie in what is allocated, when work is enqueued and when it is done, and be aligned to
256 bytes, a host buffer of a copy must be pinned, and a context is not captured before it has run
nor changed afterwards. As in TensorRT for RTX a context compiles its kernels when it first runs;
unless it is told to do so eagerly, its first runs take general kernels, which round otherwise.
"""

# ruff: noqa: N802, N815
from __future__ import annotations

import ctypes
import enum
import importlib
import json
import shutil
import sys
import threading
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from eri_export.tensorrt.profiles import make_profiles
from eri_runtime.bundle import file_record, manifest
from eri_runtime.bundle.spec import PlanSpec
from eri_runtime.executors import nvidia_driver as gpu
from eri_runtime.executors.ort.provider import graph_for
from eri_runtime.executors.tensorrt import library

ALIGNMENT = 256
VERSION = "1.7.1.116"
CAPABILITY = "8.9"


class Code(enum.IntEnum):
    """The codes that the stand-in gives."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorUnknown = 999


class Kind(enum.IntEnum):
    """`cudaMemcpyKind`."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Queue:
    """A stream: what it is to do, and what is being captured."""

    def __init__(self):
        self.work, self.captured = [], None

    def add(self, task):
        (self.work if self.captured is None else self.captured).append(task)

    def step(self):
        self.work.pop(0)()

    def run(self):
        while self.work:
            self.step()


class Gpu:
    """What CUDA's runtime has made; `failing` is the number of the call that fails."""

    name = "RTX 4090"

    def __init__(self):
        self.lock = threading.RLock()  # one call at a time, as CUDA may be called from any thread
        self.made = {}  # handle or address -> (what it is, the thing)
        self.calls = []
        self.failing = self.failing_call = None
        self.handles = iter(range(1, 1 << 30))

    def fails(self, name):
        """Count a call; whether it is the one to fail."""
        self.calls.append(name)
        return len(self.calls) == self.failing or name == self.failing_call

    def find(self, address, size, kinds):
        """The bytes at an address; a real GPU would fault, or not even that."""
        with self.lock:
            made = list(self.made.items())
        for start, (kind, memory) in made:
            if kind in kinds and start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated as {kinds}")

    def allocate(self, kind, size):
        whole = np.full(size + ALIGNMENT, 0xFF, np.uint8)
        skip = -whole.ctypes.data % ALIGNMENT
        memory = whole[skip : skip + size]
        self.made[memory.ctypes.data] = kind, memory
        return memory.ctypes.data

    def add(self, kind, thing):
        handle = next(self.handles)
        self.made[handle] = kind, thing
        return handle

    def get(self, handle, kind):
        found, thing = self.made[int(handle)]
        assert found == kind
        return thing

    def poison(self, handle):
        """What was freed is NaN, so that nobody reads it unnoticed."""
        kind, memory = self.made[int(handle)]
        if kind in ("device", "pinned"):
            memory.fill(0xFF)

    def remove(self, handle, kind):
        self.get(handle, kind)
        for found, thing in list(self.made.values()):
            if found == "stream":
                thing.run()  # freeing waits for the device
        self.poison(handle)
        del self.made[int(handle)]

    def left(self):
        """What is still there."""
        return [kind for kind, _ in self.made.values()]


def _call(function):
    """A function of CUDA's runtime: a tuple of a code and the result."""

    def called(self, *arguments):
        with self._gpu.lock:
            return call(self, *arguments)

    def call(self, *arguments):
        name = function.__name__
        destroys = "Free" in name or "Destroy" in name
        fails = self._gpu.fails(name)
        if fails and not destroys:
            wrong = Code.cudaErrorMemoryAllocation if "Malloc" in name else Code.cudaErrorUnknown
            if name == "cudaStreamEndCapture":  # it ends all the same, without a graph
                del self._gpu.made[function(self, *arguments)]
            returns = any(word in name for word in ("Malloc", "Create", "Instantiate", "End"))
            return (wrong, None) if returns else (wrong,)
        result = function(self, *arguments)
        if isinstance(result, Code):
            return (result,)
        code = Code.cudaErrorUnknown if fails else Code.cudaSuccess
        return (code,) if result is None else (code, result)

    called.arguments = function.__code__.co_argcount - 1
    return called


class Runtime:
    """`cuda.bindings.runtime`."""

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self, gpu):
        self._gpu = gpu

    @_call
    def cudaSetDevice(self, device):
        assert device == 0

    @_call
    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        return self._gpu.add("stream", Queue())

    @_call
    def cudaStreamDestroy(self, stream):
        self._gpu.remove(stream, "stream")

    @_call
    def cudaStreamSynchronize(self, stream):
        self._gpu.get(stream, "stream").run()

    @_call
    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        return self._gpu.add("event", {"reached": True, "stream": None})

    @_call
    def cudaEventDestroy(self, event):
        self._gpu.remove(event, "event")

    @_call
    def cudaEventRecord(self, event, stream):
        found, queue = self._gpu.get(event, "event"), self._gpu.get(stream, "stream")
        assert queue.captured is None, "the host learns nothing of an event in a graph"
        mark = object()
        found.update(reached=False, stream=queue, mark=mark)

        def reach():
            if found["mark"] is mark:
                found["reached"] = True

        queue.add(reach)

    @_call
    def cudaEventSynchronize(self, event):
        found = self._gpu.get(event, "event")
        while not found["reached"]:
            found["stream"].step()

    @_call
    def cudaEventQuery(self, event):
        found = self._gpu.get(event, "event")
        if found["reached"]:
            return Code.cudaSuccess
        found["stream"].step()  # time goes by
        return Code.cudaErrorNotReady

    @_call
    def cudaMalloc(self, size):
        return self._gpu.allocate("device", size)

    @_call
    def cudaFree(self, address):
        self._gpu.remove(address, "device")

    @_call
    def cudaMallocHost(self, size):
        return self._gpu.allocate("pinned", size)

    @_call
    def cudaFreeHost(self, address):
        self._gpu.remove(address, "pinned")

    @_call
    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        ends = {1: ("device", "pinned"), 2: ("pinned", "device"), 3: ("device", "device")}[kind]

        def find():
            return self._gpu.find(to, size, ends[:1]), self._gpu.find(source, size, ends[1:])

        find()
        self._gpu.get(stream, "stream").add(lambda: np.copyto(*find()))

    @_call
    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == 1
        self._gpu.get(stream, "stream").captured = []

    @_call
    def cudaStreamEndCapture(self, stream):
        queue = self._gpu.get(stream, "stream")
        tasks, queue.captured = queue.captured, None
        return self._gpu.add("graph", tasks)

    @_call
    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        return self._gpu.add("exec", self._gpu.get(graph, "graph"))

    @_call
    def cudaGraphDestroy(self, graph):
        self._gpu.remove(graph, "graph")

    @_call
    def cudaGraphExecDestroy(self, graph):
        self._gpu.remove(graph, "exec")

    @_call
    def cudaGraphLaunch(self, graph, stream):
        queue = self._gpu.get(stream, "stream")
        for task in self._gpu.get(graph, "exec"):
            queue.add(task)


@cache
def session(graph):
    """A graph on the CPU, in the order that gives the same bits whatever runs beside it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(for_cpu(graph), options, providers=["CPUExecutionProvider"])


def for_cpu(graph):
    """The form of a graph that the backend `cpu` runs."""
    return str(graph_for(Path(graph), "cpu"))


@cache
def initialisers(graph):
    """The weights of a graph by name: type and bytes of each."""
    values = ir.load(graph).graph.initializers.values()
    return {
        each.name: SimpleNamespace(
            shape=each.shape.numpy(),
            dtype=each.const_value.dtype,
            nbytes=each.const_value.nbytes,
            size=each.const_value.size,
        )
        for each in values
        if isinstance(each.const_value, ir.ExternalTensor)
    }


class Engine:
    """`ICudaEngine`: a graph, its profiles, and what was refitted."""

    def __init__(self, gpu, plan):
        self._gpu, self._plan = gpu, plan
        self._session, self._changed, self._budget = session(plan["graph"]), {}, None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = {each.name: each for each in (*inputs, *outputs)}
        self._inputs = [each.name for each in inputs]
        self._outputs = [each.name for each in outputs]
        # REQUIRE_USER_ALLOCATION and WEIGHT_STREAMING cannot be built together
        self._captures = plan.get("captures", "streaming" not in plan["flags"])
        self.refittable = "refit" in plan["flags"] or "stripped" in plan["flags"]
        self.num_io_tensors = len(self._tensors)
        self.streamable_weights_size = 1000 if "streaming" in plan["flags"] else 0

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1024 * (profile + 1)

    def create_runtime_config(self):
        return None if self._gpu.fails("create_runtime_config") else RuntimeConfig(self._gpu)

    def create_execution_context(self, runtime_config):
        """Made with a strategy alone, a context specializes its kernels lazily."""
        if isinstance(runtime_config, ExecutionContextAllocationStrategy):
            strategy, runtime_config = runtime_config, RuntimeConfig(self._gpu)
            runtime_config.set_execution_context_allocation_strategy(strategy)
        strategy = runtime_config.get_execution_context_allocation_strategy()
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self._gpu.fails("create_execution_context"):
            return None
        return Context(self, runtime_config)

    def get_weight_streaming_automatic_budget(self):
        return 500

    @property
    def weight_streaming_budget_v2(self):
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size):
        self._budget = size

    def _run(self, inputs):
        if "stripped" in self._plan["flags"] and not self._changed:
            raise AssertionError("a stripped plan runs without its weights")
        return self._session.run(self._outputs, inputs)


class RuntimeConfig:
    """`IRuntimeConfig`."""

    def __init__(self, gpu):
        self._gpu, self._strategy, self._cache = gpu, None, None
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self):
        return self._strategy

    def create_runtime_cache(self):
        return None if self._gpu.fails("create_runtime_cache") else RuntimeCache(self._gpu)

    def set_runtime_cache(self, cache):
        self._cache = cache
        return not self._gpu.fails("set_runtime_cache")


class RuntimeCache:
    """`IRuntimeCache`: the names of kernels, for this GPU alone."""

    def __init__(self, gpu):
        self._gpu, self._kernels = gpu, []

    def serialize(self):
        text = {"gpu": self._gpu.name, "kernels": self._kernels}
        return json.dumps(text).encode() if self._kernels else None

    def deserialize(self, blob):
        try:
            text = json.loads(blob)
        except ValueError:
            return False
        if text["gpu"] != self._gpu.name:
            return False
        self._kernels = text["kernels"]
        return True


LAZY_RUNS = 2  # how many runs of a context take the general kernels


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine, config):
        self.engine = engine
        self._shapes, self._addresses = {}, {}
        self._profile = self._scratch = None
        self._config, self._runs, self._frozen = config, 0, False

    def is_stream_capturable(self, stream):
        gpu = self.engine._gpu
        gpu.get(stream, "stream")
        return not gpu.fails("is_stream_capturable") and self.engine._captures

    def set_optimization_profile_async(self, profile, stream):
        self._profile = self.engine._plan["profiles"][profile]
        return not self.engine._gpu.fails("set_optimization_profile_async")

    def set_device_memory(self, address, size):
        self._scratch = address, size

    def set_input_shape(self, name, shape):
        known = self.engine._tensors[name].shape
        fits = len(known) == len(shape) and all(
            self._profile[wanted]["min"] <= size <= self._profile[wanted]["max"]
            if isinstance(wanted, str)
            else wanted == size
            for wanted, size in zip(known, shape, strict=True)
        )
        self._shapes[name] = tuple(shape)
        return fits and not self.engine._gpu.fails("set_input_shape")

    def infer_shapes(self):
        missing = [name for name in self.engine._inputs if name not in self._shapes]
        if not missing:
            shapes = output_shapes(self.engine._plan["graph"], tuple(self._shapes.items()))
            self._shapes.update(shapes)
        return missing

    def get_tensor_shape(self, name):
        return list(self._shapes[name])

    def set_tensor_address(self, name, memory):
        assert name in self.engine._tensors
        assert memory % ALIGNMENT == 0
        assert not self._frozen, "a graph holds this context as it was"
        self._addresses[name] = memory
        return not self.engine._gpu.fails("set_tensor_address")

    def execute_async_v3(self, stream_handle):
        engine = self.engine
        gpu, queue = engine._gpu, engine._gpu.get(stream_handle, "stream")
        gpu.find(*self._scratch, ["device"])
        if queue.captured is not None and not (self._runs and engine._captures):
            return False
        if gpu.fails("execute_async_v3"):
            return False
        self._frozen |= queue.captured is not None
        self._compile()
        general = self._config.dynamic_shapes_kernel_specialization_strategy.name == "LAZY"
        general = general and self._runs < LAZY_RUNS  # a captured run keeps its kernels
        self._runs += 1
        for name in engine._tensors:
            self._array(name)

        def run():
            arrays = {name: self._array(name) for name in engine._tensors}
            results = engine._run({name: arrays[name].copy() for name in engine._inputs})
            for name, result in zip(engine._outputs, results, strict=True):
                arrays[name][...] = result * np.float32(1 + 1e-4) if general else result

        queue.add(run)
        return True

    def _compile(self):
        """Its kernels, unless the cache has them or they are compiled already."""
        cache = self._config._cache or RuntimeCache(self.engine._gpu)
        kernel = json.dumps([self.engine._plan["graph"], self._shapes])
        if self._runs == 0 and kernel not in cache._kernels:
            self.engine._gpu.calls.append("compile")
            cache._kernels.append(kernel)

    def _array(self, name):
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        dtype, shape = np.dtype(kind[self.engine._tensors[name].type]), self._shapes[name]
        size = int(np.prod(shape)) * dtype.itemsize
        memory = self.engine._gpu.find(self._addresses[name], size, ["device"])
        return memory.view(dtype).reshape(shape)


@cache
def output_shapes(graph, shapes):
    """What the outputs are for inputs of these shapes: the graph is run on zeros."""
    made, known = session(graph), dict(shapes)
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    zeros = {e.name: np.zeros(known[e.name], types[e.type]) for e in made.get_inputs()}
    names = [each.name for each in made.get_outputs()]
    return {n: v.shape for n, v in zip(names, made.run(names, zeros), strict=True)}


class TensorRuntime:
    """`Runtime`."""

    def __init__(self, logger):
        self.logger, self.engine_host_code_allowed = logger, False

    def deserialize_cuda_engine(self, serialized_engine):
        assert self.engine_host_code_allowed is False
        gpu = self.logger.gpu()
        if gpu.fails("deserialize_cuda_engine"):
            self.logger.log(ILogger.ERROR, "the plan is of another\nversion")
            return None
        return Engine(gpu, json.loads(serialized_engine))


class Refitter:
    """`Refitter`."""

    def __init__(self, engine, logger):
        self._engine, self._new = engine, {}
        self._known = initialisers(engine._plan["graph"])

    def get_all_weights(self):
        return list(self._known)

    def get_missing_weights(self):
        return [name for name in self._engine._plan.get("fused", ()) if name not in self._new]

    def get_weights_prototype(self, weights_name):
        return self._known[weights_name]

    def set_named_weights(self, name, weights):
        self._new[name] = weights
        return True

    def refit_cuda_engine_async(self, stream_handle):
        gpu = self._engine._gpu
        if gpu.fails("refit_cuda_engine_async"):
            return False
        taken = {}
        for name, weights in self._new.items():
            known = self._known[name]
            data = ctypes.string_at(weights.pointer, known.nbytes)
            array = np.frombuffer(data, known.dtype.numpy()).copy()
            taken[name] = array
        gpu.get(stream_handle, "stream").add(lambda: self._swap(taken))
        return True

    def _swap(self, taken):
        """A new session with the weights in the place of the old."""
        graph = self._engine._plan["graph"]
        self._engine._changed.update(taken)
        known = self._known
        values = {n: a.reshape(known[n].shape) for n, a in self._engine._changed.items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        held = [ort.OrtValue.ortvalue_from_numpy(a) for a in values.values()]
        options.add_external_initializers(list(values), held)
        provider = ["CPUExecutionProvider"]
        self._engine._session = ort.InferenceSession(for_cpu(graph), options, providers=provider)


class Weights:
    """`Weights`."""

    def __init__(self, dtype, pointer, size):
        self.dtype, self.pointer, self.size = dtype, pointer, size


class ILogger:
    """`ILogger`, which knows the GPU too, as the library does."""

    ERROR, INTERNAL_ERROR = "error", "internal error"
    gpu = None

    def __init__(self):
        pass


class TensorLocation(enum.Enum):
    """`TensorLocation`."""

    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    """`ExecutionContextAllocationStrategy`."""

    STATIC = 0
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    """`DynamicShapesKernelSpecializationStrategy`."""

    LAZY = 0
    EAGER = 1
    NONE = 2


def install(monkeypatch):
    """Put the stand-ins where the executor looks for the libraries; the GPU they share."""
    found = Gpu()
    module = ModuleType("tensorrt_rtx")
    module.__spec__, module.__version__ = ModuleSpec("tensorrt_rtx", None), VERSION
    logger = type("ILogger", (ILogger,), {"gpu": staticmethod(lambda: found)})
    names = {"Runtime": TensorRuntime, "Refitter": Refitter, "Weights": Weights, "ILogger": logger}
    for kind in (
        TensorLocation,
        ExecutionContextAllocationStrategy,
        DynamicShapesKernelSpecializationStrategy,
    ):
        names[kind.__name__] = kind
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    for name, value in (("cuda", None), ("cuda.bindings", None), ("cuda.bindings.runtime", found)):
        package = ModuleType(name) if value is None else Runtime(value)
        package.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(gpu, "compute_capability", lambda: CAPABILITY)
    monkeypatch.setattr(library, "load_library", library.load_library.__wrapped__)
    monkeypatch.setattr(
        importlib.import_module("eri_runtime.executors.tensorrt.backend"),
        "load_library",
        library.load_library,
    )
    return found


def with_plans(source, target, flags=(), kinds=("best", "range"), **more):
    """A copy of a bundle with stand-in plans of all its graphs."""
    root = Path(shutil.copytree(source, target))
    bundle = manifest.read(root)
    (root / "plans").mkdir()
    plans, files = {}, dict(bundle.files)
    for name, spec in bundle.components.items():
        for graph in filter(None, (spec.graph, spec.step)):
            shapes = {
                str(value.name): tuple(
                    size if isinstance(size, int) else size.value for size in value.shape
                )
                for value in ir.load(root / graph).graph.inputs
            }
            profiles = make_profiles(spec, shapes, kinds)
            file = f"plans/{graph.replace('/', '-')}.plan"
            text = {
                "graph": str(root / graph),
                "flags": list(flags),
                "profiles": [
                    {n: {"min": r.min, "max": r.max} for n, r in profile.items()}
                    for profile in profiles
                ],
                **more,
            }
            (root / file).write_text(json.dumps(text))
            files[file] = file_record(root / file)
            plans[file] = PlanSpec(
                component=name,
                graph=graph,
                engine="tensorrt-rtx",
                version=VERSION,
                capabilities=(CAPABILITY,),
                profiles=profiles,
                flags=tuple(flags),
                level=3,
                workspace=None,
                attention=0,
                fused=0,
            )
    changed = replace(bundle, plans=plans, files=files)
    (root / "manifest.json").write_text(manifest.dump(changed))
    return root
