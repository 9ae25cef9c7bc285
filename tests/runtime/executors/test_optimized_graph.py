"""Sessions with other weights, from a graph that was optimised once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import eri_runtime as eri
from eri_runtime.executors import Settings
from eri_runtime.executors.onnx_linear_weights import (
    external_tensors,
    inputs_as_weights,
    linear_weights,
)
from eri_runtime.executors.onnx_weights import weights_as_inputs
from eri_runtime.executors.ort import optimized_graph
from eri_runtime.executors.ort.provider import CPU_PROVIDER
from eri_runtime.executors.ort.session import OrtExecutor, SessionSource
from eri_runtime.executors.ort.step_graph import OrtStepper

FAMILIES = ("sdxl", "sd35", "flux")
SETTINGS = Settings(threads=1)


@pytest.fixture(params=FAMILIES)
def denoiser(request):
    """A tiny denoiser: its graph, its step graph, its description and its weights."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))
    spec = bundle.components["denoiser"]
    weights = eri.bundle.read_tensors(bundle.path(spec.weights))
    return bundle.path(spec.graph), bundle.path(spec.step), spec, weights


def inputs_of(spec):
    rng = np.random.default_rng(0)
    sizes = {axis: min(each.opt, 16) for axis, each in spec.ranges.items()}
    shapes = {each.name: [sizes.get(n, n) for n in each.shape] for each in spec.inputs}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def scaled(weights, names, factor):
    """Other weights, which nobody can write to."""
    changed = {name: np.float32(factor) * weights[name] for name in names}
    for values in changed.values():
        values.setflags(write=False)
    return changed


def by_onnx(graph):
    """The names of weights that only linear layers read, found with the onnx library."""
    model = onnx.load(graph, load_external_data=False).graph
    uses = {}
    for node in model.node:
        for position, name in enumerate(node.input):
            uses.setdefault(name, []).append((node.op_type, position, node.output[0]))

    def is_factor(use):
        operator, position, output = use
        if operator == "Transpose":
            return all(each[:2] == ("MatMul", 1) for each in uses[output])
        return (operator, position) == ("Gemm", 1)

    matrices = [
        each.name for each in model.initializer if each.external_data and len(each.dims) == 2
    ]
    return {name for name in matrices if name in uses and all(map(is_factor, uses[name]))}


def test_linear_weights_are_found(denoiser):
    graph, step, _, weights = denoiser
    for each in (graph, step):
        found = linear_weights(each.read_bytes())
        assert found.keys() == by_onnx(each)
        assert {name: weights[name].shape for name in found} == found
        assert len(found) > 10


def test_a_weight_that_something_else_reads_is_not_linear(denoiser):
    graph = denoiser[0]
    model = onnx.load(graph, load_external_data=False)
    first, *others = linear_weights(graph.read_bytes())
    model.graph.node.append(onnx.helper.make_node("Abs", [first], ["of a weight"]))
    assert list(linear_weights(model.SerializeToString())) == others


def test_inputs_become_weights_again(denoiser):
    data = denoiser[0].read_bytes()
    shapes = linear_weights(data)
    as_inputs, names = weights_as_inputs(data, shapes)
    assert set(names) == shapes.keys()
    again = inputs_as_weights(as_inputs, shapes, "values")
    before, after = (onnx.load_from_string(each) for each in (data, again))
    assert [each.name for each in after.graph.input] == [each.name for each in before.graph.input]
    assert list(after.graph.node) == list(before.graph.node)
    tensors = {each.name: each for each in external_tensors(again)}
    assert tensors.keys() == {each.name for each in external_tensors(data)}
    for name, shape in shapes.items():
        assert (tensors[name].shape, tensors[name].where) == (shape, {"location": "values"})
    onnx.load_from_string(weights_as_inputs(again)[0])


@pytest.fixture
def reopened(monkeypatch):
    """The sessions that are opened from an optimised graph."""
    sessions, opening = [], optimized_graph.OptimizedGraph.open

    def counted(self, overrides):
        sessions.append(overrides)
        return opening(self, overrides)

    monkeypatch.setattr(optimized_graph.OptimizedGraph, "open", counted)
    return sessions


def test_a_swap_gives_the_bits_of_a_session_of_the_file(denoiser, reopened):
    """A, B, A, half of A, none: each as a session that was opened with these weights."""
    graph, _, spec, weights = denoiser
    names, inputs = list(linear_weights(graph.read_bytes())), inputs_of(spec)
    one, other = scaled(weights, names, 1.1), scaled(weights, names[::2], 0.7)
    half = {name: (one[name] + weights[name]) / 2 for name in names}
    seen = []
    with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS) as executor:
        for overrides in (one, other, one, half, {}):
            executor.replace(overrides)
            found = executor.run(inputs)["output"]
            with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS, overrides) as fresh:
                np.testing.assert_array_equal(found, fresh.run(inputs)["output"])
            seen.append(found.tobytes())
    assert len(reopened) == 5
    assert seen[0] == seen[2]
    assert len(set(seen)) == 4


def test_single_weights_are_replaced(sd35_bundle):
    """No optimizer kept one: the output is that of a session of the file."""
    bundle = eri.read_bundle(sd35_bundle)
    spec = bundle.components["denoiser"]
    graph, weights = bundle.path(spec.graph), eri.bundle.read_tensors(bundle.path(spec.weights))
    inputs, names = inputs_of(spec), linear_weights(bundle.path(spec.graph).read_bytes())
    with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS) as executor:
        before = executor.run(inputs)["output"]
        for name in list(names)[::7]:
            overrides = scaled(weights, [name], -3)
            executor.replace(overrides)
            found = executor.run(inputs)["output"]
            assert not np.array_equal(found, before), name
            with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS, overrides) as fresh:
                np.testing.assert_array_equal(found, fresh.run(inputs)["output"])


def test_a_change_of_other_weights_starts_from_the_file(denoiser, reopened):
    graph, _, spec, weights = denoiser
    linear, inputs = linear_weights(graph.read_bytes()), inputs_of(spec)
    bias = next(name for name in weights if name not in linear and weights[name].ndim == 1)
    with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS) as executor:
        for names in ([bias], [bias, next(iter(linear))]):
            overrides = scaled(weights, names, 1.5)
            executor.replace(overrides)
            with OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS, overrides) as fresh:
                expected = fresh.run(inputs)["output"]
            np.testing.assert_array_equal(executor.run(inputs)["output"], expected)
    assert reopened == []


def test_without_room_for_temporary_files_sessions_start_from_the_file(
    denoiser, monkeypatch, tmp_path
):
    graph, _, spec, weights = denoiser
    names, inputs = list(linear_weights(graph.read_bytes())), inputs_of(spec)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    overrides = scaled(weights, names, 1.1)
    with (
        OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS) as executor,
        OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS, overrides) as fresh,
    ):
        executor.replace(overrides)
        expected = fresh.run(inputs)["output"]
        np.testing.assert_array_equal(executor.run(inputs)["output"], expected)


def test_no_file_is_left(denoiser, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    graph, step, spec, weights = denoiser
    names = list(linear_weights(graph.read_bytes()))
    for opened in (
        OrtExecutor(graph, spec, CPU_PROVIDER, SETTINGS),
        OrtStepper(step, spec, CPU_PROVIDER, SETTINGS),
    ):
        with opened:
            opened.replace(scaled(weights, names, 1.1))
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [Settings(low_memory=True), Settings(low_memory=False)])
def test_weights_that_stay_file_pages_are_not_optimised_apart(denoiser, reopened, settings):
    graph, _, spec, weights = denoiser
    source = SessionSource(graph, spec, CPU_PROVIDER, settings)
    source.reopen(scaled(weights, list(linear_weights(graph.read_bytes()))[:1], 2))
    assert len(reopened) == (0 if settings.low_memory else 1)
