"""Which form of a graph a provider opens."""

from __future__ import annotations

import pytest

from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort.backend import CPU, CUDA
from eri_runtime.executors.ort.provider import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    DEVICES,
    session_entries,
)

FORMS = {"cpu": "step.cpu.onnx", "cuda": "step.cuda.onnx"}


@pytest.mark.parametrize("device", DEVICES)
def test_a_provider_opens_the_form_for_its_device_or_the_plain_graph(device):
    backend = {"cpu": CPU, "cuda": CUDA}[device]
    others = [form for other, form in FORMS.items() if other != device]
    assert backend.graph_file("step.onnx", ["step.onnx", *FORMS.values()]) == FORMS[device]
    assert backend.graph_file("step.onnx", ["step.onnx", *others]) == "step.onnx"


def test_cuda_packs_weights_even_if_memory_is_low():
    """Without it the form's convolutions would read weights in another order, with no error."""
    low = Settings(low_memory=True)
    name = "session.disable_prepacking"
    assert name not in session_entries(CUDA_PROVIDER, low)
    assert session_entries(CPU_PROVIDER, low)[name] == "1"
