"""Flux's rotary positions, as diffusers writes them, in one operator with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from onnxscript.optimizer import optimize_ir
from torch import nn

from eri_export.graphs.passes.rotary import fuse_rotary

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own
HEADS, AXES = 2, (4, 8)  # a head is as long as its axes together


class Queries(nn.Module):
    """What a Flux block does to its queries and keys before attention."""

    interleaved = True

    def forward(self, x, ids):
        """(batch, tokens, heads, size) and (tokens, axes) -> (batch, heads, tokens, size)."""
        tables = [
            get_1d_rotary_pos_embed(
                size,
                ids[:, axis],
                use_real=True,
                repeat_interleave_real=self.interleaved,
                freqs_dtype=torch.float64,
            )
            for axis, size in enumerate(AXES)
        ]
        cos, sin = (torch.cat([table[i] for table in tables], dim=-1) for i in (0, 1))
        q, k = (apply_rotary_emb(each, (cos, sin), sequence_dim=1) for each in (x, x + 1))
        return q.transpose(1, 2), k.transpose(1, 2)


class Halves(Queries):
    """Tables that repeat as halves, not as pairs, around the same pairs of `x`."""

    interleaved = False


def traced(module, dtype, *, static=False):
    x = torch.zeros(3, 7, HEADS, sum(AXES), dtype=dtype)
    open_size = torch.export.Dim.DYNAMIC
    shapes = None if static else ({0: open_size, 1: open_size}, {0: open_size})
    program = torch.export.export(module, (x, torch.zeros(7, 2)), dynamic_shapes=shapes)
    model = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=23, verbose=False)
    optimize_ir(model.model)
    return model.model


def run(model, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 7, HEADS, sum(AXES))).astype(dtype)
    ids = rng.integers(0, 50, (7, 2)).astype(np.float32)
    raw = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(raw)
    return session.run(
        None, dict(zip([v.name for v in session.get_inputs()], (x, ids), strict=True))
    )


# the same products and sums; float16 is rounded once, after them, in both
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_it_is_fused_and_gives_the_same(dtype, tolerance, static):
    model = traced(Queries(), getattr(torch, dtype), static=static)
    expected = run(model, dtype)
    fuse_rotary(model)
    assert [node.op_type for node in model.graph].count("RotaryEmbedding") == 2
    for made, wanted in zip(run(model, dtype), expected, strict=True):
        assert made.dtype == wanted.dtype
        np.testing.assert_allclose(made, wanted, rtol=tolerance, atol=tolerance)


def test_tables_that_do_not_repeat_as_pairs_stay():
    model = traced(Halves(), torch.float32)
    fuse_rotary(model)
    assert "RotaryEmbedding" not in [node.op_type for node in model.graph]
