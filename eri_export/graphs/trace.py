"""Traces a recipe's network to an ONNX graph, without its weights in memory.

The network is built under `FakeTensorMode`, where tensors have shapes and types but no bytes, so
a trace takes the same memory for a model of any size. The graph's weights are initialisers without
values, under the checkpoint's names; `weights_file.bind` points them at a file.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx import ONNXProgram
from torch.utils._pytree import tree_map

from eri_export.choices import TIME_EMBEDDINGS
from eri_export.graphs.memory.activations import note_peaks
from eri_export.graphs.passes.einsum_transpose import transpose_einsums
from eri_export.graphs.passes.first_largest import expand_first_largest
from eri_export.graphs.passes.group_norm import expand_group_norms
from eri_export.graphs.passes.hidden_weights import hide_weights, restore_weights
from eri_export.graphs.passes.rename_interface import name_interface
from eri_export.graphs.passes.rms_norm import fuse_rms_norms
from eri_export.graphs.passes.rotary import fuse_rotary
from eri_export.graphs.passes.stamp_blocks import inline, stamp
from eri_export.graphs.passes.strip_metadata import strip_metadata
from eri_export.graphs.recipes.base import Recipe, example
from eri_export.graphs.repeated_blocks import BlockCall, Kind, stand_ins
from eri_export.graphs.weight_names import file_names
from eri_runtime.errors import ExportError

OPSET = 23  # the first with Attention; torch writes a wrong number above 25
MOST = 2**20  # of a dynamic axis: a UNet depends on a bound, see its recipe
Dynamic = tuple[Any, ...]
Pass = Callable[[ir.Model], None]
PASSES: tuple[Pass, ...] = (
    transpose_einsums,
    fuse_rms_norms,
    fuse_rotary,
    expand_group_norms,
    expand_first_largest,
)
PREFIX = "network."  # of the weights' names, as a recipe's wrapper has its network there


def trace(
    recipe: Recipe,
    *,
    blocks: Literal["stamped", "unrolled"] = "stamped",
    passes: Sequence[Pass] = PASSES,
) -> ir.Model:
    """Returns the optimised graph of `recipe`, with the checkpoint's weight names and no values.

    "stamped" traces one block of each kind that the network repeats; "unrolled" traces all blocks,
    which gives the same graph and takes longer. `passes` are those of `rewrite`. Raises
    `DamagedWeightsError` if the checkpoint does not fit its config and `ExportError` if the
    network cannot be traced.
    """
    with FakeTensorMode(), torch.no_grad(), _quiet(), _old_objects_frozen():
        network = recipe.build()
        names = file_names(network, recipe.source)
        _set_types(network, recipe)
        repeated = recipe.repeated if blocks == "stamped" else ()
        with stand_ins(network, repeated) as kinds:
            wrapper = recipe.wrap(network, recipe.dtype)
            model = _onnx(recipe, wrapper, example(recipe, recipe.traced_at), _dynamic(recipe))
        traced = [(kind, _block(recipe, kind)) for kind in kinds.values()]
    hidden = _optimise(model)
    stamps = [(kind.paths, block, _optimise(block)) for kind, block in traced]
    known = {path: (block.graph, own) for paths, block, own in stamps for path in paths}
    note_peaks(model, hidden, [each.spec for each in recipe.inputs], known)
    for paths, block, own in stamps:
        hidden |= stamp(model, block, paths, own, PREFIX)
    inline(model)
    restore_weights(model, hidden, {PREFIX + name: stored for name, stored in names.items()})
    rewrite(model, passes)
    name_interface(model, [each.spec for each in recipe.inputs], recipe.outputs)
    strip_metadata(model)
    return model


def rewrite(model: ir.Model, passes: Sequence[Pass] = PASSES) -> None:
    """Replaces groups of traced operators by single operators that engines run faster."""
    for rewrite_pass in passes:
        rewrite_pass(model)
    RemoveUnusedNodesPass()(model)


def _optimise(model: ir.Model) -> frozenset[str]:
    """Optimises in place and returns the names of the weights, which stay hidden graph inputs.

    Folding T5's buckets of positions takes the logarithm of 0 and casts it, as PyTorch does; the
    graph selects other numbers there.
    """
    hidden = hide_weights(model)
    with np.errstate(divide="ignore", invalid="ignore"):
        optimize_ir(model)
    return hidden


def _block(recipe: Recipe, kind: Kind) -> ir.Model:
    """Returns the graph of one block, whose arguments are variadic: their axes are one tuple."""
    return _onnx(recipe, BlockCall(kind), kind.example(), (kind.dynamic,))


def _dynamic(recipe: Recipe) -> Dynamic:
    """Returns the dynamic axes of each input."""
    return tuple(
        {
            axis: torch.export.Dim.DYNAMIC(max=MOST)
            for axis, size in enumerate(each.spec.shape)
            if _is_dynamic(recipe, size)
        }
        for each in recipe.inputs
    )


def _onnx(
    recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...], dynamic: Dynamic
) -> ir.Model:
    """Exports a module to ONNX, unoptimised; raises `ExportError` for what torch raises."""
    try:
        program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False
        )
    except Exception as error:  # torch raises many kinds here, none of them public
        raise ExportError(
            f"{recipe.name} ({recipe.source.class_name})",
            got=f"{type(error).__name__}: {error}",
            expected="a network that torch.export can trace",
        ) from error
    return cast(ONNXProgram, exported).model


def _is_dynamic(recipe: Recipe, size: int | str) -> bool:
    return isinstance(size, str) and size not in recipe.constants


def _set_types(network: nn.Module, recipe: Recipe) -> None:
    """Gives every floating-point tensor its exported type; `.to` fails under fake tensors."""
    for path, module in network.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None or not value.is_floating_point():
                continue
            dtype = recipe.weight_dtype(f"{path}.{name}")
            typed = torch.empty(value.shape, dtype=dtype)
            if name in module._parameters:
                typed = nn.Parameter(typed, requires_grad=False)
            setattr(module, name, typed)
    for name in TIME_EMBEDDINGS.get(recipe.source.class_name, ()):
        if name in recipe.kept_float32:
            _keep_float32(network.get_submodule(name), recipe.dtype)


def _keep_float32(module: nn.Module, around: torch.dtype) -> None:
    """Casts a float32 module's inputs to float32 and its outputs to the type `around` it."""
    module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
    module.register_forward_hook(lambda _, _inputs, outputs: _cast(outputs, around))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda each: each.to(dtype) if isinstance(each, Tensor) else each, values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's messages about itself: its deprecations, missing torchvision operators."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*", FutureWarning)
            yield
    finally:
        exporter.setLevel(level)


@contextlib.contextmanager
def _old_objects_frozen() -> Iterator[None]:
    """Hides all objects that exist now from the garbage collector.

    Tracing makes so many objects that the collector scans the libraries' million again and again.
    With them frozen, tracing a tiny VAE decoder took 0.70 to 0.73 of the CPU time (two rounds).
    """
    if gc.get_freeze_count():  # the caller did it
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
