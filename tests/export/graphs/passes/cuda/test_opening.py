"""Which form of a graph a provider opens."""

from __future__ import annotations

from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort.provider import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    graph_for,
    session_entries,
)


def test_cuda_opens_the_cuda_form_and_the_cpu_the_plain_graph(tmp_path):
    graph = tmp_path / "step.onnx"
    form = tmp_path / "step.cuda.onnx"
    graph.touch()
    form.touch()
    assert graph_for(graph, CUDA_PROVIDER) == form
    assert graph_for(graph, CPU_PROVIDER) == graph


def test_bundles_without_a_cuda_form_open_the_plain_graph(tmp_path):
    graph = tmp_path / "segment-00.onnx"
    graph.touch()
    assert graph_for(graph, CUDA_PROVIDER) == graph


def test_cuda_packs_weights_even_if_memory_is_low():
    """Without it the form's convolutions would read weights in another order, with no error."""
    low = Settings(low_memory=True)
    name = "session.disable_prepacking"
    assert name not in session_entries(CUDA_PROVIDER, low)
    assert session_entries(CPU_PROVIDER, low)[name] == "1"
