"""The reference: PyTorch in float32 on the CPU, and the operations that a run takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eri_export.graphs.recipes.base import Arrays, Recipe, Sizes, Wrapper, example
from eri_export.graphs.repeated_blocks import BlockCall, Kind, stand_ins
from eri_export.graphs.weight_names import file_names


def reference(recipe: Recipe) -> Wrapper:
    """Returns the network in float32 with the checkpoint's weights, rounded like the bundle's.

    The weights are read into memory: four bytes per parameter.
    """
    with torch.device("meta"):
        network = recipe.build()
    names = file_names(network, recipe.source)
    state = {name: read_weight(recipe, name, stored) for name, stored in names.items()}
    network.load_state_dict(state, assign=True)
    return recipe.wrap(network, torch.float32)


def read_weight(recipe: Recipe, name: str, stored: str) -> torch.Tensor:
    """Returns a weight of the checkpoint in float32, rounded to its type in the bundle.

    The export has checked that all values are finite when it wrote the bundle's weights.
    """
    source, rounded = recipe.source.tensors[stored], recipe.weight_dtype(name)
    value = torch.empty(source.shape)
    flat, position = value.view(-1), 0
    for chunk in source.chunks():
        flat[position : position + len(chunk)].copy_(chunk.to(rounded))
        position += len(chunk)
    return value


def run(recipe: Recipe, wrapper: Wrapper, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Returns the outputs by name; ignores `inputs` that the recipe does not have."""
    with torch.no_grad():
        result = wrapper(*(torch.from_numpy(inputs[each.spec.name]) for each in recipe.inputs))
    results = result if isinstance(result, tuple) else (result,)
    names = (output.name for output in recipe.outputs)
    return {name: value.numpy() for name, value in zip(names, results, strict=True)}


def flops(recipe: Recipe, runs: Iterable[Sizes]) -> list[int]:
    """Counts the floating-point operations of a run at each of these sizes, without any data.

    Of blocks that the network repeats, one of each kind is run and counted for all.
    """
    with torch.device("meta"), torch.no_grad():
        network = recipe.build()
        wrapper = recipe.wrap(network, torch.float32)
        return [_flops(recipe, network, wrapper, sizes) for sizes in runs]


def _flops(recipe: Recipe, network: nn.Module, wrapper: Wrapper, sizes: Sizes) -> int:
    with stand_ins(network, recipe.repeated, _empty) as kinds, _counter() as once:
        wrapper(*example(recipe, sizes))
    total = once.get_total_flops()
    for kind in kinds.values():
        with _counter() as block:
            BlockCall(kind)(*kind.arguments.tensors)
        total += (len(kind.paths) - 1) * block.get_total_flops()
    return int(total)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _empty(kind: Kind, _tensors: tuple[Tensor, ...], _path: str) -> Sequence[Tensor]:
    """Stands in for a block whose operations are counted elsewhere."""
    return [torch.empty_like(tensor) for tensor in kind.results.tensors]
