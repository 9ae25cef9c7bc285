"""TensorRT as a backend: runs the plans of a bundle on an NVIDIA GPU, without torch.

Not yet run on a GPU; `pytest -m gpu tests/runtime/executors/test_tensorrt_gpu.py` does that. The
other tests replace both libraries with a stand-in. They show that this code makes the calls it
intends to make, not that the libraries do what it expects of them.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors import nvidia_driver
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import FROM_FILE, Arrays, Executor, Settings
from eri_runtime.executors.step_graph import Stepper
from eri_runtime.executors.tensorrt.engine import Budget, OpenPlan
from eri_runtime.executors.tensorrt.executor import TrtExecutor
from eri_runtime.executors.tensorrt.kernel_cache import kernel_file
from eri_runtime.executors.tensorrt.library import installed, load_library
from eri_runtime.executors.tensorrt.plans import Machine, choose_plan, read_plan
from eri_runtime.executors.tensorrt.step_graph import TrtStepper
from eri_runtime.install_hint import install_hint

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TensorRtBackend(Backend):
    """Runs the plans of a bundle.

    Attributes:
        bundle: The bundle whose plans run; set by `of`.
        weight_budget: Bytes of a component's weights on the GPU at a time, `auto` for the engine's
            choice, or None for all of them. Overrides `Settings.low_memory` and `streamed`.
    """

    bundle: Bundle | None = None
    weight_budget: Budget = None
    streams_in_segments = False

    def of(self, bundle: Bundle) -> Self:
        """Returns this backend with the plans of a bundle."""
        return replace(self, bundle=bundle)

    def graph_file(self, graph: str, files: Collection[str]) -> None:
        """Returns None: a plan is opened, and its hash checked whenever it is read."""

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component cannot run on this machine, in a few words, or None."""
        return _missing_requirement() or self._missing_plan(spec.graph)

    def streaming_refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component's weights cannot be streamed, in a few words, or None."""
        if reason := self.refusal(spec):
            return reason
        plan = self._bundle.plans[
            choose_plan(self._bundle, spec.graph, _this_machine(self._bundle))
        ]
        built = "streaming" in plan.flags
        return None if built else "a plan that streams no weights: `eri build --streaming`"

    def step_cache_refusal(self, spec: ComponentSpec) -> str | None:
        """Returns that plans are built of whole graphs."""
        del spec
        return "TensorRT, whose plans are of whole graphs"

    def words(self, settings: Settings) -> str:
        """Describes the library, the GPU and the options of a plan, in one line."""
        machine, budget = _this_machine(self._bundle), self._budget(settings)
        where = f"compute capability {machine.capability}"
        streamed = "all weights on the GPU" if budget is None else f"weight budget {budget}"
        return f"{machine.engine} {machine.version}, {where}, {streamed}; never run on a GPU yet"

    def executor(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Executor:
        """Opens the plan of a component. Raises `BackendError` if there is none or it fails."""
        del graph  # the plan is a separate file
        return TrtExecutor(spec, self._open_plan(spec, spec.graph, settings), overrides)

    def runs_step_graph(self, spec: ComponentSpec) -> bool:
        """Returns whether a plan of the step graph fits this machine; logs why none does."""
        if spec.step is None:
            return False
        if reason := self._missing_plan(spec.step):
            log.info("the step graph is not run: %s", reason)
            return False
        return True

    def stepper(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Stepper | None:
        """Opens the plan of the step graph. Returns None if none fits this machine."""
        del graph
        if not self.runs_step_graph(spec):
            return None
        return TrtStepper(spec, self._open_plan(spec, str(spec.step), settings), overrides)

    @property
    def _bundle(self) -> Bundle:
        if self.bundle is None:
            expected = "the bundle whose plans are to run, as `TENSORRT.of(bundle)`"
            raise BackendError("backend tensorrt", got="no bundle", expected=expected)
        return self.bundle

    def _open_plan(self, spec: ComponentSpec, graph: str, settings: Settings) -> OpenPlan:
        """Chooses a graph's plan, reads it and checks its hash."""
        if reason := _missing_requirement():
            raise BackendError(graph, got=reason, expected="a machine for TensorRT")
        machine = _this_machine(self._bundle)
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
            kernels=kernel_file(file, self._bundle.files[file].sha256, machine)
            if settings.cache
            else None,
        )

    def _missing_plan(self, graph: str) -> str | None:
        """Returns why no plan of this graph fits, and the command that builds one, or None."""
        try:
            choose_plan(self._bundle, graph, _this_machine(self._bundle))
        except BackendError as error:
            # without `--component`, so that all components without a plan share one line
            command, *component = str(error.fix).split(" --component ")
            return f"{error.got}: {command}{'`' if component else ''}"
        return None

    def _budget(self, settings: Settings) -> Budget:
        """Returns `weight_budget` if set, 0 if streamed, `auto` with low memory, and else None."""
        if self.weight_budget is not None:
            return self.weight_budget
        if settings.streamed:
            return 0
        return "auto" if settings.low_memory else None


TENSORRT = TensorRtBackend()


def _missing_requirement() -> str | None:
    """Returns why no plan can run on this machine, or None."""
    if not installed():
        return f"TensorRT is not installed: {install_hint('rtx')}"
    if not (importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")):
        return f"cuda-bindings is not installed: {install_hint('rtx')}"
    return "no NVIDIA GPU" if nvidia_driver.compute_capability() is None else None


def _this_machine(bundle: Bundle) -> Machine:
    """Describes this GPU and a library: one with plans in the bundle if any, else the first.

    Raises `BackendError` if the library cannot be imported.
    """
    capability = str(nvidia_driver.compute_capability())
    built = {plan.engine for plan in bundle.plans.values()}
    names = sorted(installed(), key=lambda name: name not in built)
    return Machine(engine=names[0], version=load_library(names[0]).version, capability=capability)
