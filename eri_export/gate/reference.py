"""PyTorch in float32, on the CPU: what a graph is compared with, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from eri_export.names import file_names
from eri_export.recipes.base import Arrays, Recipe, Sizes, Wrapper, example
from eri_export.weights import Conversion


def reference(recipe: Recipe) -> Wrapper:
    """The network in float32 with the checkpoint's weights, rounded as the bundle's are.

    The weights are read into memory: four bytes a parameter.
    """
    with torch.device("meta"):
        network = recipe.build()
    names = file_names(network, recipe.source)
    state = {name: _weight(recipe, name, stored) for name, stored in names.items()}
    network.load_state_dict(state, assign=True)
    return recipe.wrap(network, torch.float32)


def _weight(recipe: Recipe, name: str, stored: str) -> torch.Tensor:
    source = recipe.source.tensors[stored]
    value = torch.empty(source.shape)
    flat, position = value.view(-1), 0
    for chunk in Conversion(source, torch.float32, rounded=recipe.weight_dtype(name)).chunks():
        flat[position : position + len(chunk)] = chunk
        position += len(chunk)
    return value


def run(recipe: Recipe, wrapper: Wrapper, inputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs by name; what `recipe` does not name among the inputs is left aside."""
    with torch.no_grad():
        result = wrapper(*(torch.from_numpy(inputs[each.spec.name]) for each in recipe.inputs))
    results = result if isinstance(result, tuple) else (result,)
    names = (output.name for output in recipe.outputs)
    return {name: value.numpy() for name, value in zip(names, results, strict=True)}


def flops(recipe: Recipe, runs: Iterable[Sizes]) -> list[int]:
    """Floating-point operations of a run at each of these sizes, counted without any data."""
    with torch.device("meta"), torch.no_grad():
        wrapper = recipe.wrap(recipe.build(), torch.float32)
        return [_flops(wrapper, example(recipe, sizes)) for sizes in runs]


def _flops(wrapper: Wrapper, inputs: tuple[torch.Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        wrapper(*inputs)
    return int(counter.get_total_flops())
