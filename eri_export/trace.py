"""A recipe to an ONNX graph, with no weight in memory.

The network is built under `FakeTensorMode`, where tensors have shapes and types but no bytes, so
the memory a trace takes does not depend on the size of the model. The graph's weights are
initialisers without values, under the checkpoint's names; `weights.bind` points them at a file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx import ONNXProgram
from torch.utils._pytree import tree_map

from eri_export.activations import note_peaks
from eri_export.blocks import BlockCall, Kind, stand_ins
from eri_export.names import file_names
from eri_export.passes.einsum_transpose import transpose_einsums
from eri_export.passes.group_norm import expand_group_norms
from eri_export.passes.hidden_weights import hide_weights, restore_weights
from eri_export.passes.interface import name_interface
from eri_export.passes.rms_norm import fuse_rms_norms
from eri_export.passes.rotary import fuse_rotary
from eri_export.passes.stamp import inline, stamp
from eri_export.passes.strip_metadata import strip_metadata
from eri_export.precision import CLOCKS
from eri_export.recipes.base import Recipe, example
from eri_runtime.errors import ExportError

OPSET = 23  # the first with Attention; torch writes a wrong number above 25
Dynamic = tuple[Any, ...]
Pass = Callable[[ir.Model], None]
PASSES: tuple[Pass, ...] = (transpose_einsums, fuse_rms_norms, fuse_rotary, expand_group_norms)
PREFIX = "network."  # where a recipe's wrapper keeps the network


def trace(
    recipe: Recipe,
    *,
    blocks: Literal["stamped", "unrolled"] = "stamped",
    passes: Sequence[Pass] = PASSES,
) -> ir.Model:
    """The optimised graph of `recipe`, its weights named as in the checkpoint and without values.

    `stamped` traces one block of each kind that the network repeats; `unrolled` traces them all
    and gives the same graph, later. `passes` are `rewrite`'s. Raises
    `DamagedWeightsError` where the checkpoint does not fit its config and `ExportError` where the
    network cannot be traced.
    """
    with FakeTensorMode(), torch.no_grad(), _quiet():
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
    """Say in operators that engines run well what the tracer wrote out; nothing else changes."""
    for each in passes:
        each(model)
    RemoveUnusedNodesPass()(model)


def _optimise(model: ir.Model) -> frozenset[str]:
    """Optimise in place; the names of the weights, which are hidden from the optimiser and stay."""
    hidden = hide_weights(model)
    optimize_ir(model)
    return hidden


def _block(recipe: Recipe, kind: Kind) -> ir.Model:
    """The graph of one block; its arguments are variadic, so their axes are one nested tuple."""
    return _onnx(recipe, BlockCall(kind), kind.example(), (kind.dynamic,))


def _dynamic(recipe: Recipe) -> Dynamic:
    """The axes of each input whose size is open."""
    shapes = (each.spec.shape for each in recipe.inputs)
    return tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if _open(recipe, size)}
        for shape in shapes
    )


def _onnx(
    recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...], dynamic: Dynamic
) -> ir.Model:
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


def _open(recipe: Recipe, size: int | str) -> bool:
    return isinstance(size, str) and size not in recipe.constants


def _set_types(network: nn.Module, recipe: Recipe) -> None:
    """Give every floating-point tensor its exported type; `.to` cannot, under fake tensors."""
    for path, module in network.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None or not value.is_floating_point():
                continue
            dtype = recipe.weight_dtype(f"{path}.{name}")
            typed = torch.empty(value.shape, dtype=dtype)
            if name in module._parameters:
                typed = nn.Parameter(typed, requires_grad=False)
            setattr(module, name, typed)
    for name in CLOCKS.get(recipe.source.class_name, ()):
        if name in recipe.kept_float32:
            _keep_float32(network.get_submodule(name), recipe.dtype)


def _keep_float32(module: nn.Module, around: torch.dtype) -> None:
    """Let a float32 module take and give the type of the network around it."""
    module.register_forward_pre_hook(lambda _, given: _cast(given, torch.float32))
    module.register_forward_hook(lambda _, _given, made: _cast(made, around))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda each: each.to(dtype) if isinstance(each, Tensor) else each, values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about itself: its own deprecations, operators of torchvision."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*", FutureWarning)
            yield
    finally:
        exporter.setLevel(level)
