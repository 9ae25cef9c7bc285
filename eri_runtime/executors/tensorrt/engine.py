"""An open TensorRT plan: its execution contexts, its streams and its memory.

Not yet run on a GPU: the tests replace TensorRT with a stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import PlanSpec, read_tensors
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.executors.base import FROM_FILE, Arrays, Closeable, changed_tensors
from eri_runtime.executors.tensorrt.cuda import Device, Memory, Pinned
from eri_runtime.executors.tensorrt.kernel_cache import KernelCache
from eri_runtime.executors.tensorrt.library import Library
from eri_runtime.executors.tensorrt.plans import choose_profile

Shapes = Mapping[str, tuple[int, ...]]
Budget = int | Literal["auto"] | None
NAMED = 3  # how many tensors an error message lists


@dataclass(frozen=True, kw_only=True)
class OpenPlan:
    """A plan that was chosen for this machine and whose hash was checked.

    Attributes:
        file: Its path in the bundle.
        spec: Its entry in the manifest.
        data: Its bytes.
        library: The library that runs it.
        weights: The weights file, read by a refit. A plan built without weights gets all of them
            from it.
        budget: Bytes of weights on the device at a time, `auto` for the engine's choice, or None
            for all of them.
        kernels: File for the kernels that the library compiles for this GPU; None: not kept.
    """

    file: str
    spec: PlanSpec
    data: bytes
    library: Library
    weights: Path
    budget: Budget = None
    kernels: Path | None = None


class PreparedRefit(NamedTuple):
    """A refitter whose weights are set, and the arrays whose memory it reads."""

    refitter: Any
    arrays: list[NDArray[Any]]


class TrtEngine(Closeable):
    """A deserialized plan on one device, and the stream that runs it.

    `reader` is a second stream for copying out finished results; it waits for no other work.
    `refits` counts how often the weights were replaced.
    """

    def __init__(self, plan: OpenPlan, overrides: Arrays = FROM_FILE) -> None:
        """Opens `plan` with `overrides` as in `replace`. Raises `BackendError` if that fails."""
        self.plan = plan
        self._overrides = FROM_FILE
        self._scratch: dict[int, Memory] = {}
        self._host: Pinned | None = None
        self._kernels: KernelCache | None = None
        self._engine: Any = None
        self.refits = 0
        self.device = Device()
        try:
            self.stream, self.reader = self.device.stream(), self.device.stream()
            self._open(overrides)
        except BaseException:
            self.close()
            raise

    def context(self, sizes: Mapping[str, int], shapes: Shapes) -> Context:
        """Creates a context for these input shapes; `sizes` are the dynamic dimensions by name.

        Raises `SizeError` if no profile fits.
        """
        profile = choose_profile(self.plan.spec, sizes)
        if profile not in self._scratch:  # shared, as the stream runs one context at a time
            size = self._engine.get_device_memory_size_for_profile_v2(profile)
            self._scratch[profile] = self.device.memory(size)
        context = self.checked(self._create_context(), "a context")
        return Context(self, context, profile, shapes, self._scratch[profile])

    def host(self, size: int) -> Pinned:
        """Returns pinned memory of at least `size` bytes, for one copy that is waited for."""
        if self._host is None or self._host.size < size:
            if self._host is not None:
                self.device.free(self._host)
                self._host = None
            self._host = self.device.pinned(size)
        return self._host

    def keep_kernels(self) -> None:
        """Writes the kernels that the library has compiled so far to `OpenPlan.kernels`."""
        if self._kernels is not None:
            self._kernels.save()

    def checked(self, value: Any, expected: str) -> Any:
        """Returns the library's result `value`. Raises `BackendError` if it is None or False."""
        if value is None or value is False:
            reason = self.plan.library.last_error()
            raise BackendError(self.plan.file, got=reason, expected=f"{expected} from TensorRT")
        return value

    def replace(self, overrides: Arrays) -> None:
        """Replaces weights of the file by name; weights that do not change are not moved.

        Raises `UsageError` for a weight that the engine does not have or of another size, and
        `BackendError` if the plan cannot be refitted or the library refuses. The old weights are
        then put back; if that fails too, the engine is closed.
        """
        self.check_open()
        names = changed_tensors(self._overrides, overrides)
        if not names:
            return
        if not self._engine.refittable:
            fix = "build it with `eri build --refit`"
            got = "a plan of fixed weights"
            raise BackendError(self.plan.file, got=got, expected="refit", fix=fix)
        stored = read_tensors(self.plan.weights)
        before, after = {**stored, **self._overrides}, {**stored, **overrides}
        prepared = self._prepare_refit(names, after)
        try:
            self._refit(prepared)
        except BackendError:
            self._put_back(names, before)
            raise
        self._overrides = overrides

    def close(self) -> None:
        try:
            self.keep_kernels()
        finally:
            self._engine = self._kernels = self._host = None
            self.device.close()

    @property
    def closed(self) -> bool:
        """Whether the engine's memory is freed."""
        return self._engine is None

    def check_open(self) -> None:
        """Raises `BackendError` if the engine is closed."""
        if self.closed:
            raise BackendError(self.plan.file, got="a closed engine", expected="an open one")

    def _create_context(self) -> Any:
        """Creates a context that takes its device memory from us.

        TensorRT for RTX compiles kernels on the GPU's machine. By default it first runs general
        kernels and replaces them once those for the actual shapes are compiled: results would then
        differ from run to run, and a CUDA graph could hold the slow ones. EAGER compiles first.
        https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
        """
        module = self.plan.library.module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:  # TensorRT compiles its kernels when the plan is built
            return self._engine.create_execution_context(strategy)
        config = self.checked(self._engine.create_runtime_config(), "a runtime configuration")
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._kernels is None and self.plan.kernels is not None:
            created = self.checked(config.create_runtime_cache(), "a runtime cache")
            self._kernels = KernelCache(created, self.plan.kernels)
        if self._kernels is not None:
            self.checked(config.set_runtime_cache(self._kernels.native), "its runtime cache taken")
        return self._engine.create_execution_context(config)

    def _open(self, overrides: Arrays) -> None:
        """Deserializes the plan, and sets its weight budget and weights."""
        plan, module = self.plan, self.plan.library.module
        plan.library.errors.clear()
        # a plan that contains host code is refused, which is the library's default
        runtime = module.Runtime(plan.library.logger)
        self._engine = self.checked(runtime.deserialize_cuda_engine(plan.data), "an engine")
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            if self._engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
                where = f"{plan.file}: {name}"
                raise BackendError(where, got="a tensor of the host", expected="one of the device")
        if plan.budget is not None:
            self._stream_weights(plan.budget)
        if "stripped" in plan.spec.flags:
            refitter = module.Refitter(self._engine, plan.library.logger)
            stored = read_tensors(plan.weights)
            names = stored.keys() & set(refitter.get_all_weights())
            self._refit(self._prepare_refit(names, stored))
        if overrides:
            self.replace(overrides)

    def _put_back(self, names: Set[str], weights: Arrays) -> None:
        """Restores the old weights after a failed refit. Closes the engine if that fails too."""
        try:
            self._refit(self._prepare_refit(names, weights))
        except BackendError as error:
            self.close()
            expected = "the old weights put back; the engine is closed"
            raise BackendError(self.plan.file, got=error, expected=expected) from error

    def _prepare_refit(self, names: Set[str], weights: Arrays) -> PreparedRefit:
        """Sets these weights, and those the engine fused with them, in a new refitter."""
        plan = self.plan
        self.stream.wait()
        refitter = plan.library.module.Refitter(self._engine, plan.library.logger)
        known = set(refitter.get_all_weights())
        if unknown := sorted(names - known):
            where = f"{plan.file}: {', '.join(unknown[:NAMED])}"
            raise UsageError(where, got="no such weight", expected="a weight of the plan")
        arrays = self._set_weights(refitter, names, weights)
        fused = set(refitter.get_missing_weights())
        arrays += self._set_weights(refitter, fused & weights.keys(), weights)
        if missing := sorted(refitter.get_missing_weights()):
            got = f"{len(missing)} weights missing: {', '.join(missing[:NAMED])}"
            raise BackendError(plan.file, got=got, expected="all that are fused with these")
        return PreparedRefit(refitter, arrays)

    def _set_weights(self, refitter: Any, names: Set[str], weights: Arrays) -> list[NDArray[Any]]:
        """Points a refitter to weights; returns their arrays, which must outlive the refit."""
        arrays = []
        for name in sorted(names):
            prototype, values = refitter.get_weights_prototype(name), weights[name]
            if values.nbytes != prototype.nbytes:
                got, expected = f"{values.nbytes} bytes", f"{prototype.nbytes}"
                raise UsageError(f"{self.plan.file}: {name}", got=got, expected=expected)
            arrays.append(np.ascontiguousarray(values))
            address = arrays[-1].ctypes.data
            weight = self.plan.library.module.Weights(prototype.dtype, address, prototype.size)
            self.checked(refitter.set_named_weights(name, weight), f"{name} taken")
        return arrays

    def _refit(self, prepared: PreparedRefit) -> None:
        stream = int(self.stream.handle)
        self.refits += 1
        self.checked(prepared.refitter.refit_cuda_engine_async(stream), "new weights")
        self.stream.wait()

    def _stream_weights(self, budget: int | Literal["auto"]) -> None:
        """Sets how many bytes of weights are on the device at a time."""
        engine, plan = self._engine, self.plan
        most = engine.streamable_weights_size
        if "streaming" not in plan.spec.flags or not most:
            fix = "build it with `eri build --streaming`"
            got = "a plan whose weights all lie on the device"
            raise BackendError(plan.file, got=got, expected="weight streaming", fix=fix)
        size = engine.get_weight_streaming_automatic_budget() if budget == "auto" else budget
        if not 0 <= size <= most:
            raise UsageError("weight budget", got=size, expected=f"0 to {most} bytes")
        try:
            engine.weight_streaming_budget_v2 = size
        except Exception as error:  # the bindings raise pybind11's exceptions
            got = f"{error}; {plan.library.last_error()}"
            raise BackendError(f"{plan.file}: weight budget", got=got, expected=size) from error


class Context:
    """An execution context of fixed input shapes: bind tensor addresses, then execute."""

    def __init__(
        self, engine: TrtEngine, context: Any, profile: int, shapes: Shapes, scratch: Memory
    ) -> None:
        self._engine, self._context = engine, context
        self._has_run = False
        stream = int(engine.stream.handle)
        selected = context.set_optimization_profile_async(profile, stream)
        engine.checked(selected, f"profile {profile}")
        context.set_device_memory(scratch.address, scratch.size)
        for name, shape in shapes.items():
            engine.checked(context.set_input_shape(name, shape), f"{name} of {shape}")
        if missing := context.infer_shapes():
            got = f"no shape for {', '.join(missing)}"
            raise BackendError(engine.plan.file, got=got, expected="all inputs")

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an output."""
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Sets the device addresses of tensors for the runs that follow."""
        for name, address in addresses.items():
            bound = self._context.set_tensor_address(name, address)
            self._engine.checked(bound, f"{name} at an address")

    def check_capturable(self) -> None:
        """Raises `BackendError` if the library says that a run cannot be captured."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is None:
            return  # a version that cannot be asked: the capture itself fails if it must
        plan, library = self._engine.plan, self._engine.plan.library
        library.errors.clear()
        if ask(int(self._engine.stream.handle)):
            return
        got = f"not capturable, says {library.name} {library.version}: {library.last_error()}"
        if "streaming" in plan.spec.flags:
            raise BackendError(plan.file, got=got, expected="a plan built without --streaming")
        fix = (
            "build the plan again with `eri build`, as it may lack REQUIRE_USER_ALLOCATION; "
            "should the log say that this takes too much memory, export with a smaller --size"
        )
        raise BackendError(plan.file, got=got, expected="a plan for CUDA graphs", fix=fix)

    def execute(self) -> None:
        """Enqueues one run. The first one compiles kernels where the library does that."""
        stream = int(self._engine.stream.handle)
        self._engine.checked(self._context.execute_async_v3(stream), "a run")
        if not self._has_run:
            self._has_run = True
            self._engine.keep_kernels()
