"""An open TensorRT plan: its contexts, its one stream, its memory.

Not yet run on a GPU: the tests put a stand-in in the place of TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import BackendError, UsageError
from eri_runtime.executors.base import FROM_FILE, Arrays, Closeable, moved
from eri_runtime.executors.cuda import Device, Memory
from eri_runtime.executors.plans import choose_profile
from eri_runtime.executors.trt_library import Library
from eri_runtime.spec import PlanSpec
from eri_runtime.tensors import read_tensors

Shapes = Mapping[str, tuple[int, ...]]
Budget = int | Literal["auto"] | None
NAMED = 3  # tensors that a message names


@dataclass(frozen=True, kw_only=True)
class OpenPlan:
    """A plan that was chosen and proven: its bytes, what the manifest says of it, its library.

    `budget` is how many bytes of its weights may lie on the device at once, None for all;
    `weights` is the file of those that a refit does not bring, of which all are put into a plan
    that was built without.
    """

    file: str
    spec: PlanSpec
    data: bytes
    library: Library
    weights: Path
    budget: Budget = None


class Given(NamedTuple):
    """A refitter and the memory of the weights it was given."""

    refitter: Any
    kept: list[NDArray]


class TrtEngine(Closeable):
    """A deserialised plan on one device, with the stream its work is done in.

    `reader` is a stream to copy finished results out with, which waits for no work. `refits` is
    how often its weights were replaced.
    """

    def __init__(self, plan: OpenPlan, overrides: Arrays = FROM_FILE) -> None:
        """`overrides` as of `replace`; raises `BackendError` where the library or CUDA refuses."""
        self.plan = plan
        self._overrides = FROM_FILE
        self._scratch: dict[int, Memory] = {}
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
        """A context for inputs of these shapes, `sizes` being their dynamic dimensions by name.

        Raises `SizeError` where no profile holds them.
        """
        profile = choose_profile(self.plan.spec, sizes)
        if profile not in self._scratch:  # shared, as the stream runs one context at a time
            size = self._engine.get_device_memory_size_for_profile_v2(profile)
            self._scratch[profile] = self.device.memory(size)
        strategy = self.plan.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        made = self.given(self._engine.create_execution_context(strategy), "a context")
        return Context(self, made, profile, shapes, self._scratch[profile])

    def given(self, value: Any, expected: str) -> Any:
        """What the library gave, or `BackendError` where that is None or False."""
        if value is None or value is False:
            said = self.plan.library.said()
            raise BackendError(self.plan.file, got=said, expected=f"{expected} from TensorRT")
        return value

    def replace(self, overrides: Arrays) -> None:
        """Put weights in by name, in the place of the file's; those that do not change stay.

        Raises `UsageError` for a weight that the engine has not or of another size, and
        `BackendError` where the plan takes none or the library refuses. The old ones are put back
        then; where that fails too, the engine is closed.
        """
        self.check_open()
        names = moved(self._overrides, overrides)
        if not names:
            return
        if not self._engine.refittable:
            fix = "build it with `eri build --refit`"
            got = "a plan of fixed weights"
            raise BackendError(self.plan.file, got=got, expected="refit", fix=fix)
        stored = read_tensors(self.plan.weights)
        before, after = {**stored, **self._overrides}, {**stored, **overrides}
        given = self._given(names, after)
        try:
            self._refit(given)
        except BackendError:
            self._put_back(names, before)
            raise
        self._overrides = overrides

    def close(self) -> None:
        self._engine = None
        self.device.close()

    @property
    def closed(self) -> bool:
        """Whether its memory is gone."""
        return self._engine is None

    def check_open(self) -> None:
        """Raise `BackendError` after `close`."""
        if self.closed:
            raise BackendError(self.plan.file, got="a closed engine", expected="an open one")

    def _open(self, overrides: Arrays) -> None:
        plan, module = self.plan, self.plan.library.module
        plan.library.errors.clear()
        # its host code stays forbidden, which is the default
        runtime = module.Runtime(plan.library.logger)
        self._engine = self.given(runtime.deserialize_cuda_engine(plan.data), "an engine")
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
            self._refit(self._given(stored.keys() & set(refitter.get_all_weights()), stored))
        if overrides:
            self.replace(overrides)

    def _put_back(self, names: Set[str], weights: Mapping[str, NDArray]) -> None:
        """After a refit that failed half-way: the same weights as before it, or no engine."""
        try:
            self._refit(self._given(names, weights))
        except BackendError as error:
            self.close()
            expected = "the old weights put back; the engine is closed"
            raise BackendError(self.plan.file, got=error, expected=expected) from error

    def _given(self, names: Set[str], weights: Mapping[str, NDArray]) -> Given:
        """A refitter that was given these weights and those that the engine has fused with them."""
        plan = self.plan
        self.stream.wait()
        refitter = plan.library.module.Refitter(self._engine, plan.library.logger)
        known = set(refitter.get_all_weights())
        if unknown := sorted(names - known):
            where = f"{plan.file}: {', '.join(unknown[:NAMED])}"
            raise UsageError(where, got="no such weight", expected="a weight of the plan")
        kept = self._give(refitter, names, weights)
        fused = set(refitter.get_missing_weights())
        kept += self._give(refitter, fused & weights.keys(), weights)
        if missing := sorted(refitter.get_missing_weights()):
            got = f"{len(missing)} weights missing: {', '.join(missing[:NAMED])}"
            raise BackendError(plan.file, got=got, expected="all that are fused with these")
        return Given(refitter, kept)

    def _give(
        self, refitter: Any, names: Set[str], weights: Mapping[str, NDArray]
    ) -> list[NDArray]:
        """Name weights' memory to a refitter, which must stay until it is done."""
        kept = []
        for name in sorted(names):
            wanted, values = refitter.get_weights_prototype(name), weights[name]
            if values.nbytes != wanted.nbytes:
                got, expected = f"{values.nbytes} bytes", f"{wanted.nbytes}"
                raise UsageError(f"{self.plan.file}: {name}", got=got, expected=expected)
            kept.append(np.ascontiguousarray(values))
            address = kept[-1].ctypes.data
            made = self.plan.library.module.Weights(wanted.dtype, address, wanted.size)
            self.given(refitter.set_named_weights(name, made), f"{name} taken")
        return kept

    def _refit(self, given: Given) -> None:
        stream = int(self.stream.handle)
        self.refits += 1
        self.given(given.refitter.refit_cuda_engine_async(stream), "new weights")
        self.stream.wait()

    def _stream_weights(self, budget: int | Literal["auto"]) -> None:
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
        except Exception as error:  # the bindings raise what pybind does
            got = f"{error}; {plan.library.said()}"
            raise BackendError(f"{plan.file}: weight budget", got=got, expected=size) from error


class Context:
    """A context whose shapes are fixed: tensors are pointed at, and it is executed."""

    def __init__(
        self, engine: TrtEngine, context: Any, profile: int, shapes: Shapes, scratch: Memory
    ) -> None:
        self._engine, self._context = engine, context
        stream = int(engine.stream.handle)
        selected = context.set_optimization_profile_async(profile, stream)
        engine.given(selected, f"profile {profile}")
        context.set_device_memory(scratch.address, scratch.size)
        for name, shape in shapes.items():
            engine.given(context.set_input_shape(name, shape), f"{name} of {shape}")
        if missing := context.infer_shapes():
            got = f"no shape for {', '.join(missing)}"
            raise BackendError(engine.plan.file, got=got, expected="all inputs")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output."""
        return tuple(self._context.get_tensor_shape(name))

    def point(self, addresses: Mapping[str, int]) -> None:
        """Where tensors lie from now on."""
        for name, address in addresses.items():
            pointed = self._context.set_tensor_address(name, address)
            self._engine.given(pointed, f"{name} at an address")

    def execute(self) -> None:
        """Enqueue one run."""
        stream = int(self._engine.stream.handle)
        self._engine.given(self._context.execute_async_v3(stream), "a run")
