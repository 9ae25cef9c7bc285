"""The CPU form of a finished graph: all passes, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cpu.flash_attention import fuse_attention
from eri_export.graphs.passes.merge_heads import merge_heads


def cpu_form(model: ir.Model) -> ir.Model:
    """Returns the form of `model` for ONNX Runtime's CPU provider; `model` stays as it is."""
    form = model.clone()
    merge_heads(form)
    fuse_attention(form)
    RemoveUnusedNodesPass()(form)
    return form
