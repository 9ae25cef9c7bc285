"""A graph's inputs for LoRAs: zeros with every case, drawn ones beside PyTorch's hooked layers."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eri_export.gate.cases import SEED, Case
from eri_export.gate.reference import run
from eri_export.names import file_names
from eri_export.recipes.base import Arrays, Recipe, Wrapper
from eri_runtime.lora_inputs import zeros
from eri_runtime.spec import LORA_A, LORA_B, LoraSpec

# of a layer's product over its input: a hundred layers on, it is plain to see and overflows nothing
GAIN = 0.05


def lora_cases(recipe: Recipe, lora: LoraSpec | None) -> list[Case]:
    """One, at the smallest sizes, with another product for each of two rows where two fit."""
    if lora is None:
        return []
    rows = recipe.ranges["batch"]
    batch = min(max(2, rows.min), rows.max)
    sizes = {**{name: each.min for name, each in recipe.ranges.items()}, "batch": batch}
    inputs = {**recipe.sample(sizes, SEED), **drawn_loras(lora, batch, batch)}
    return [Case("loras", sizes, inputs)]


def drawn_loras(lora: LoraSpec | None, loras: int, rows: int) -> Arrays:
    """Products of the full rank for so many `loras`, or for all `rows` of a graph that shares none.

    Empty for a graph that takes no LoRAs.
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
    """The case with all inputs of the graph: no product where it has none."""
    if lora is None:
        return case
    return dataclasses.replace(case, inputs={**zeros(lora, case.sizes["batch"]), **case.inputs})


def run_with_loras(recipe: Recipe, wrapper: Wrapper, inputs: Arrays) -> dict[str, np.ndarray]:
    """PyTorch's outputs, with the products that are among `inputs` added to those of its layers."""
    names = file_names(wrapper.network, recipe.source)
    with ExitStack() as hooks:
        for path, module in wrapper.network.named_modules():
            stored = names.get(f"{path}.weight", "")
            if LORA_A + stored in inputs:
                a, b = (torch.from_numpy(inputs[each + stored]) for each in (LORA_A, LORA_B))
                hooks.enter_context(_hooked(module, a, b))
        return run(recipe, wrapper, inputs)


def _hooked(module: nn.Module, a: Tensor, b: Tensor) -> RemovableHandle:
    """Add (x·A)·B to the output of a layer for as long as the handle is open."""

    def add(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        (x,) = given
        rows = x if x.ndim == 3 else x[:, None]
        return made + (rows @ a @ b).reshape(made.shape)

    return module.register_forward_hook(add)
