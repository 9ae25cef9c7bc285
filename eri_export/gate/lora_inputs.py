"""A graph's LoRA inputs: zeros in most cases, and drawn ones to compare with PyTorch's layers."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eri_export.gate.cases import SEED, Case
from eri_export.gate.pytorch_reference import run
from eri_export.graphs.recipes.base import Arrays, Recipe, Wrapper
from eri_export.graphs.weight_names import file_names
from eri_runtime.bundle import LORA_A, LORA_B, LoraSpec
from eri_runtime.weights import zero_lora_inputs

# size of a layer's low-rank product relative to its input: after a hundred layers its effect is
# clear, and nothing overflows
GAIN = 0.05


def lora_cases(recipe: Recipe, lora: LoraSpec | None) -> list[Case]:
    """Returns a case at the smallest sizes, with different LoRAs in two rows if the batch allows.

    The list is empty for a graph without LoRA inputs.
    """
    if lora is None:
        return []
    rows = recipe.ranges["batch"]
    batch = min(max(2, rows.min), rows.max)
    sizes = {**{name: each.min for name, each in recipe.ranges.items()}, "batch": batch}
    inputs = {**recipe.sample(sizes, SEED), **random_loras(lora, batch, batch)}
    return [Case("loras", sizes, inputs)]


def random_loras(lora: LoraSpec | None, loras: int, rows: int) -> Arrays:
    """Draws the inputs for so many `loras` of the full rank, or for all `rows` if none is shared.

    Empty for a graph without LoRA inputs.
    """
    if lora is None:
        return {}
    rng, count = np.random.default_rng(SEED), loras if lora.shared else rows
    arrays = {}
    for name, (out, width) in lora.targets.items():
        a = rng.standard_normal((count, width, lora.rank), np.float32) / math.sqrt(width)
        b = rng.standard_normal((count, lora.rank, out), np.float32) / math.sqrt(lora.rank)
        arrays[LORA_A + name], arrays[LORA_B + name] = a, np.float32(GAIN) * b
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def filled_with_zeros(case: Case, lora: LoraSpec | None) -> Case:
    """Returns the case with zeros for the LoRA inputs that it lacks."""
    if lora is None:
        return case
    return dataclasses.replace(
        case, inputs={**zero_lora_inputs(lora, case.sizes["batch"]), **case.inputs}
    )


def run_with_loras(recipe: Recipe, wrapper: Wrapper, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Returns PyTorch's outputs, with the LoRAs among `inputs` added to its layers."""
    names = file_names(wrapper.network, recipe.source)
    with ExitStack() as hooks:
        for path, module in wrapper.network.named_modules():
            stored = names.get(f"{path}.weight", "")
            if LORA_A + stored in inputs:
                a, b = (torch.from_numpy(inputs[each + stored]) for each in (LORA_A, LORA_B))
                hooks.enter_context(_hooked(module, a, b))
        return run(recipe, wrapper, inputs)


def _hooked(module: nn.Module, a: Tensor, b: Tensor) -> RemovableHandle:
    """Adds (x·A)·B to the output of a layer while the handle is open."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        rows = x if x.ndim == 3 else x[:, None]
        return output + (rows @ a @ b).reshape(output.shape)

    return module.register_forward_hook(add)
