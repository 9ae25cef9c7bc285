"""Runs PyTorch on several cases with the weights of one layer in memory.

Every case is a forward pass of its own network on a thread of its own. A pass stops before each
module with weights of its own. Once all have stopped, the weights of one module are read, and the
passes that wait for it run on in turn. So each weight is read once, and one thread runs at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from threading import Semaphore, Thread
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eri_export.gate.lora_inputs import run_with_loras
from eri_export.gate.pytorch_reference import read_weight
from eri_export.graphs.recipes.base import Arrays, Recipe, Wrapper
from eri_export.graphs.weight_names import file_names

Names = tuple[str, ...]  # of the weights that a module has of its own


class _StoppedError(Exception):
    """Unwinds a pass that is not to go on, as another one failed."""


class Pass:
    """A forward pass on a thread, which stops whenever it needs weights."""

    def __init__(self, recipe: Recipe, inputs: Arrays) -> None:
        """Builds the network without weights; `advance` runs it."""
        self._recipe, self._inputs = recipe, inputs
        self._go_on, self._has_stopped = Semaphore(0), Semaphore(0)
        self._given: Mapping[str, Tensor] = {}
        self._stopped = False
        self._thread = Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self.outputs: Mapping[str, NDArray[Any]] = {}
        self.wanted: Names | None = None

    def start(self) -> None:
        """Runs to the first stop."""
        self._thread.start()
        self._wait()

    def advance(self, tensors: Mapping[str, Tensor]) -> None:
        """Runs on with the weights `wanted`, to the next stop; raises the error of the pass."""
        self._given, self.wanted = tensors, None
        self._go_on.release()
        self._wait()

    def stop(self) -> None:
        """Ends a pass at its next stop, if it has not ended."""
        self._stopped = True
        self._go_on.release()

    def _wait(self) -> None:
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.outputs = run_with_loras(self._recipe, self._wrapper(), self._inputs)
        except _StoppedError:
            pass
        except BaseException as error:  # raised by the thread that waits
            self._error = error
        finally:
            self.wanted = None
            self._has_stopped.release()

    def _wrapper(self) -> Wrapper:
        """Returns the recipe's network, whose modules get their weights when they are called."""
        with torch.device("meta"):
            network = self._recipe.build()
        stored = file_names(network, self._recipe.source)
        for path, module in network.named_modules():
            prefix = f"{path}." if path else ""
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            named = {name: prefix + name for name, _ in own if prefix + name in stored}
            if named:
                self._fill_when_called(module, named)
        return self._recipe.wrap(network, torch.float32)

    def _fill_when_called(self, module: nn.Module, named: Mapping[str, str]) -> None:
        """Gives `module` its weights, of these full names by its own names, during each call."""
        empty = {name: getattr(module, name) for name in named}

        def fill(_module: nn.Module, _inputs: object) -> None:
            given = self._weights(tuple(named.values()))
            for name, full in named.items():
                _set(module, name, given[full])

        def clear(_module: nn.Module, _inputs: object, _output: object) -> None:
            for name, value in empty.items():
                _set(module, name, value)

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(clear)

    def _weights(self, names: Names) -> Mapping[str, Tensor]:
        """Stops until `advance` gives the weights."""
        self.wanted = names
        self._has_stopped.release()
        self._go_on.acquire()
        if self._stopped:
            raise _StoppedError
        given, self._given = self._given, {}
        return given


def run_streamed(recipe: Recipe, cases: Sequence[Arrays]) -> list[Arrays]:
    """Returns PyTorch's outputs for each case, with the LoRAs among its inputs.

    Raises what a pass raises. Every weight is read from the checkpoint, as `reference` does.
    """
    passes = [Pass(recipe, inputs) for inputs in cases]
    with torch.device("meta"):
        stored = file_names(recipe.build(), recipe.source)
    try:
        for each in passes:
            each.start()
        while (names := next(_wanted(passes), None)) is not None:
            tensors = {name: read_weight(recipe, name, stored[name]) for name in names}
            for each in passes:
                if each.wanted == names:
                    each.advance(tensors)
            del tensors
    finally:
        for each in passes:
            each.stop()
    return [each.outputs for each in passes]


def _wanted(passes: Sequence[Pass]) -> Iterator[Names]:
    """Yields the weights that each stopped pass waits for."""
    return (each.wanted for each in passes if each.wanted is not None)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Sets a parameter or buffer of a module, without a copy."""
    if name in module._parameters:
        module._parameters[name] = (
            value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        )
    else:
        module._buffers[name] = value
