"""The CPU form of a finished graph: all passes, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cpu.flash_attention import fuse_attention
from eri_export.graphs.passes.cpu.instance_norm import fuse_group_norms
from eri_export.graphs.passes.merge_heads import merge_heads
from eri_runtime.bundle import ComponentSpec


def has_cpu_form(spec: ComponentSpec) -> bool:
    """Returns whether the graphs of a component have a form for the CPU.

    Those with attention in slices have none: the form computes the heads of a layer together. Nor
    have those in bfloat16, which ONNX Runtime's CPU does not run.
    """
    return spec.attention_slice is None and spec.precision != "bf16"


def cpu_form(model: ir.Model) -> ir.Model:
    """Returns the form of `model` for ONNX Runtime's CPU provider; `model` stays as it is."""
    form = model.clone()
    merge_heads(form)
    fuse_attention(form)
    fuse_group_norms(form)
    RemoveUnusedNodesPass()(form)
    return form
