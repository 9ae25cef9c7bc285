"""The CPU form of every image network computes what its plain graph does, from the same weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.load_graph import load_graph
from eri_export.graphs.passes.cpu import cpu_form
from eri_runtime.bundle import manifest
from eri_runtime.executors.ort.provider import form_of

FAMILIES = ("sdxl", "sd35", "flux")
# sums of attention in another order, through a tiny network
TOLERANCE = 1e-5


def graphs(bundle):
    """Yields every graph that has a form for the CPU, as published."""
    for path in sorted(bundle.root.glob("*/*.onnx")):
        if form_of(path, "cpu").exists():
            yield path


def operators(path):
    return Counter(node.op_type for node in ir.load(path).graph)


def run(path):
    """Runs a graph on drawn inputs."""
    session = onnxruntime.InferenceSession(str(path))
    sizes = {"batch": 2, "height": 8, "width": 12, "image_height": 64, "image_width": 96}
    sizes |= {"images": 1, "conditions": 2}
    feeds = {}
    for each in session.get_inputs():
        shape = [d if isinstance(d, int) else sizes.get(d, 24) for d in each.shape]
        rng = np.random.default_rng(sum(map(ord, each.name)))
        if each.type == "tensor(int64)":
            count = int(np.prod(shape))
            feeds[each.name] = np.arange(count).reshape(shape) * (each.name == "index")
        else:
            feeds[each.name] = rng.standard_normal(shape, np.float32)
    return session.run(None, feeds)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_computes_what_its_graph_does(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    found = [*graphs(bundle)]
    names = {path.relative_to(bundle.root).as_posix() for path in found}
    expected = {"denoiser/model.onnx", "denoiser/step.onnx", "vae_decoder/model.onnx"}
    assert expected <= names
    for path in found:
        form = form_of(path, "cpu")
        assert form.relative_to(bundle.root).as_posix() in bundle.files
        plain, made = operators(path), operators(form)
        assert made["MultiHeadAttention"] + made["Attention"] == plain["Attention"]
        assert (made["MultiHeadAttention"] > 0) == (plain["Attention"] > 0)
        if path.name.startswith("cache-"):
            continue  # tests of step caching run them
        assert made["Transpose"] < plain["Transpose"]
        for ours, theirs in zip(run(form), run(path), strict=True):
            assert np.abs(theirs).max() > 0
            assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_cross_attention_keeps_the_kernel_for_few_keys(sdxl_bundle):
    made = operators(sdxl_bundle / "denoiser" / "model.cpu.onnx")
    assert made["Attention"] == made["MultiHeadAttention"] > 0


def test_the_plain_graph_stays_as_it_was(sd35_bundle):
    model = load_graph(sd35_bundle / "denoiser" / "model.onnx")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    cpu_form(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
