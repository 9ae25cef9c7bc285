"""The plans of a bundle on an NVIDIA GPU, with TensorRT or TensorRT for RTX, and without torch.

Not yet run on a GPU: `pytest -m gpu tests/test_tensorrt_gpu.py` is to be run on one. The other
tests put a stand-in in the place of both libraries, which shows that ours calls them as it means
to, and not that they do what it believes.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from eri_runtime.errors import BackendError
from eri_runtime.executors import gpu
from eri_runtime.executors.base import FROM_FILE, Arrays, Backend, Executor, Settings
from eri_runtime.executors.plans import Machine, choose_plan, read_plan
from eri_runtime.executors.stepper import Stepper
from eri_runtime.executors.trt_engine import Budget, OpenPlan
from eri_runtime.executors.trt_executor import TrtExecutor
from eri_runtime.executors.trt_library import installed, load_library
from eri_runtime.executors.trt_step import TrtStepper
from eri_runtime.spec import Bundle, ComponentSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TensorRtBackend(Backend):
    """The plans of `bundle`.

    `weight_budget` is how many bytes of a component's weights lie on the GPU at once, `auto` for
    what the engine thinks best, and None for all of them.
    """

    bundle: Bundle | None = None
    weight_budget: Budget = None
    in_segments = False

    def of(self, bundle: Bundle) -> Self:
        """This backend with the plans of a bundle."""
        return replace(self, bundle=bundle)

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Why this component cannot run here, in a few words, or None."""
        return _no_machine() or self._lacks(spec.graph)

    def unstreamed(self, spec: ComponentSpec) -> str | None:
        """Why the weights of a component cannot be streamed, in a few words, or None."""
        if reason := self.refusal(spec):
            return reason
        plan = self._bundle.plans[choose_plan(self._bundle, spec.graph, _machine(self._bundle))]
        built = "streaming" in plan.flags
        return None if built else "a plan that streams no weights: `eri build --streaming`"

    def words(self, settings: Settings) -> str:
        """The library, the GPU, and the options that plans are opened with."""
        machine, budget = _machine(self._bundle), self._budget(settings)
        where = f"compute capability {machine.capability}"
        streamed = "all weights on the GPU" if budget is None else f"weight budget {budget}"
        return f"{machine.engine} {machine.version}, {where}, {streamed}; never run on a GPU yet"

    def executor(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Executor:
        """Open a component's plan."""
        del graph  # a plan is a file of its own
        return TrtExecutor(spec, self._plan(spec, spec.graph, settings), overrides)

    def stepper(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Stepper | None:
        """Open the step graph's plan; None where this machine has none."""
        del graph
        if reason := self._lacks(str(spec.step)):
            log.info("the step graph is not run: %s", reason)
            return None
        return TrtStepper(spec, self._plan(spec, str(spec.step), settings), overrides)

    @property
    def _bundle(self) -> Bundle:
        if self.bundle is None:
            expected = "the bundle whose plans are to run, as `TENSORRT.of(bundle)`"
            raise BackendError("backend tensorrt", got="no bundle", expected=expected)
        return self.bundle

    def _plan(self, spec: ComponentSpec, graph: str, settings: Settings) -> OpenPlan:
        """A graph's plan, read and proven."""
        if reason := _no_machine():
            raise BackendError(graph, got=reason, expected="a machine for TensorRT")
        machine = _machine(self._bundle)
        file = choose_plan(self._bundle, graph, machine)
        plan = self._bundle.plans[file]
        streams = "streaming" in plan.flags or self.weight_budget is not None
        return OpenPlan(
            file=file,
            spec=plan,
            data=read_plan(self._bundle, file),
            library=load_library(machine.engine),
            budget=self._budget(settings) if streams else None,
            weights=self._bundle.path(spec.weights),
        )

    def _lacks(self, graph: str) -> str | None:
        """What is missing to run a plan of this graph, and what to run for it."""
        try:
            choose_plan(self._bundle, graph, _machine(self._bundle))
        except BackendError as error:
            # the same command for every component, so that all that lack a plan share a line
            command, *one = str(error.fix).split(" --component ")
            return f"{error.got}: {command}{'`' if one else ''}"
        return None

    def _budget(self, settings: Settings) -> Budget:
        if self.weight_budget is not None:
            return self.weight_budget
        if settings.streamed:
            return 0
        return "auto" if settings.low_memory else None


TENSORRT = TensorRtBackend()


def _no_machine() -> str | None:
    """Why no plan at all can run here."""
    if not installed():
        return "TensorRT is not installed: pip install 'eri-diffusion[rtx]'"
    if not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")):
        return "cuda-bindings is not installed: pip install 'eri-diffusion[rtx]'"
    return "no NVIDIA GPU" if gpu.compute_capability() is None else None


def _machine(bundle: Bundle) -> Machine:
    """This GPU with the first library that has plans in the bundle, or the first that is there.

    Raises `BackendError` where a library cannot be imported.
    """
    capability, built = str(gpu.compute_capability()), {p.engine for p in bundle.plans.values()}
    names = sorted(installed(), key=lambda name: name not in built)
    return Machine(engine=names[0], version=load_library(names[0]).version, capability=capability)
