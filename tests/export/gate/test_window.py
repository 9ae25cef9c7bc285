"""Comparing in a window of memory: a layer at a time in PyTorch, a part at a time on an engine."""

from __future__ import annotations

import shutil
import threading
import weakref

import numpy as np
import onnx_ir as ir
import pytest

from eri_export import export, make_plan
from eri_export.choices import Gate, make_gate
from eri_export.gate import parity, streamed_reference
from eri_export.gate.lora_inputs import run_with_loras
from eri_export.gate.pytorch_reference import reference
from eri_export.gate.streamed_reference import run_streamed
from eri_export.gate.window import BYTES_PER_PARAMETER, LEAST, Window, window_of
from eri_export.graphs.step_graph import compose
from eri_runtime.bundle import read_bundle
from eri_runtime.commands.describe_bundle import bundle_facts, describe_bundle
from eri_runtime.errors import ParityError, UnknownNameError, UsageError
from tests.support.components import STATIC, only

PARTS = 3
QUICK = Gate(kind="quick")
COMPONENTS = [
    ("sdxl", "denoiser"),
    ("sd35", "denoiser"),
    ("flux", "denoiser"),
    ("flux", "text_encoder_2"),
    ("sdxl", "vae_encoder"),
]


def recipe_of(request, family, name):
    recipes = make_plan(request.getfixturevalue(f"{family}_checkpoint")).recipes
    return next(each for each in recipes if each.name == name)


@pytest.fixture
def exported(request, tmp_path):
    """A function: a component's recipe, its graph in a folder of its own, and its spec."""

    def copied(family, name):
        bundle = read_bundle(request.getfixturevalue(f"{family}_bundle"))
        shutil.copytree(bundle.root / name, tmp_path / name)
        recipe = recipe_of(request, family, name)
        return recipe, tmp_path / name / "model.onnx", bundle.components[name]

    return copied


def within(monkeypatch, recipe, parts):
    """Leaves room for one of so many parts of the network."""
    room = BYTES_PER_PARAMETER * recipe.source.parameters // parts
    monkeypatch.setattr(parity, "window_of", lambda _gate: Window(room))


@pytest.fixture
def one_case(monkeypatch):
    """A full gate of one case: quick, and yet it runs step graphs."""
    every = parity.cases_of
    monkeypatch.setattr(
        parity, "cases_of", lambda recipe, real, _kind: every(recipe, real, "quick")
    )


def measured(report):
    return {
        (each.output, each.case, each.network, str(each.sizes)): each.max_rel
        for each in report.metrics
        if each.case != "segments"
    }


@pytest.mark.parametrize(("family", "name"), COMPONENTS)
@pytest.mark.usefixtures("one_case")
def test_parts_are_measured_end_to_end_as_the_whole_is(exported, monkeypatch, family, name):
    recipe, graph, spec = exported(family, name)
    files = sorted(path.name for path in graph.parent.iterdir())
    within(monkeypatch, recipe, 1)
    whole = parity.compare(recipe, graph, spec, None)
    within(monkeypatch, recipe, PARTS)
    parts = parity.compare(recipe, graph, spec, None)
    forms = {key for key in measured(whole.report) if "form" in key}  # in parts it is only proved
    assert bool(forms) == (not name.startswith("text_encoder"))
    assert measured(parts.report).keys() == measured(whole.report).keys() - forms
    assert (spec.step is not None) == any(each.case == "step" for each in parts.report.metrics)
    assert all(each.passed and each.max_rel > 0 for each in parts.report.metrics)
    assert parts.others.keys() == whole.others.keys()
    assert sorted(path.name for path in graph.parent.iterdir()) == files


def test_a_weight_that_was_written_wrong_shows_in_parts(exported, monkeypatch):
    recipe, graph, spec = exported("sd35", "denoiser")
    weights = graph.with_name("weights.safetensors")
    nbytes = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.seek(nbytes // 2)
        stream.write(b"\0" * (nbytes // 8))
    within(monkeypatch, recipe, PARTS)
    with pytest.raises(ParityError, match=r"denoiser\.output"):
        parity.compare(recipe, graph, spec, None, gate=QUICK)


def test_a_quick_gate_refuses_the_step_graph_of_another_denoiser(exported):
    recipe, graph, spec = exported("sd35", "denoiser")
    compose(model := ir.load(graph))
    model.graph.node(0).name = "another"
    ir.save(model, graph.with_name("step.onnx"))
    with pytest.raises(ParityError, match=r"step\.onnx"):
        parity.compare(recipe, graph, spec, None, gate=QUICK)


@pytest.mark.parametrize(("family", "name"), COMPONENTS)
def test_a_layer_at_a_time_gives_the_bits_of_the_whole(request, family, name):
    recipe = recipe_of(request, family, name)
    cases = [recipe.sample(sizes, seed) for seed, sizes in enumerate(recipe.sizes[1:])]
    wrapper = reference(recipe)
    for inputs, streamed in zip(cases, run_streamed(recipe, cases), strict=True):
        for output, expected in run_with_loras(recipe, wrapper, inputs).items():
            np.testing.assert_array_equal(streamed[output], expected)


def test_one_layers_weights_are_in_memory_at_a_time(request, monkeypatch):
    recipe = recipe_of(request, "sd35", "denoiser")
    read, live, peak = streamed_reference.read_weight, [0], [0]

    def freed(nbytes):
        live[0] -= nbytes

    def counted(*arguments):
        value = read(*arguments)
        live[0] += value.nbytes
        peak[0] = max(peak[0], live[0])
        weakref.finalize(value.untyped_storage(), freed, value.nbytes)
        return value

    monkeypatch.setattr(streamed_reference, "read_weight", counted)
    run_streamed(recipe, [recipe.sample(sizes, 0) for sizes in recipe.sizes])
    largest = max(4 * np.prod(each.shape) for each in recipe.source.tensors.values())
    assert 0 < peak[0] <= 2 * largest
    assert live[0] == 0


def test_an_error_of_one_pass_ends_all_of_them(request):
    recipe = recipe_of(request, "sd35", "denoiser")
    good = recipe.sample(recipe.sizes[1], 0)
    bad = {**good, "encoder_hidden_states": good["encoder_hidden_states"][..., :-1]}
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_streamed(recipe, [good, bad, good])
    for thread in threading.enumerate():
        if thread.daemon:
            thread.join(10)
    assert threading.active_count() <= before


def test_a_quick_gate_compares_one_case_and_is_recorded(sdxl_checkpoint, tmp_path):
    with only({"text_encoder", "denoiser"}):
        bundle = export(sdxl_checkpoint, tmp_path / "quick", ranges=STATIC, gate="quick")
    facts = bundle_facts(read_bundle(bundle.root))
    assert (bundle.gate, facts["gate"]) == ("quick", "quick")
    assert any("--gate quick" in line for line in describe_bundle(bundle))
    report = bundle.path("parity.json").read_text()
    assert '"gate": "quick"' in report
    assert report.count('"case": "drawn"') == report.count('"case": ') == 2  # one of each


def test_a_full_gate_is_written_down_nowhere_in_the_manifest(sdxl_bundle):
    bundle = read_bundle(sdxl_bundle)
    assert bundle.gate == "full"
    assert '"gate"' not in (bundle.root / "manifest.json").read_text()
    assert not any("--gate" in line for line in describe_bundle(bundle))


def test_a_gate_is_what_was_asked_for():
    assert make_gate("quick", "4GB") == Gate(kind="quick", memory=4 * 10**9)
    assert make_gate("full", 10**9).memory == 10**9
    with pytest.raises(UnknownNameError, match="full or quick"):
        make_gate("none", "2GB")
    for memory in ("much", "0", 0, True, 2.5, None):
        with pytest.raises(UsageError, match="gate_memory"):
            make_gate("full", memory)


def test_a_window_is_what_the_process_has_left():
    assert window_of(Gate(memory=1)).nbytes == LEAST
    assert 0 < window_of(Gate(memory=10**12)).nbytes < 10**12
    window = Window(10 * BYTES_PER_PARAMETER)
    assert window.holds(10)
    assert not window.holds(11)
    assert [window.parts(n) for n in (10, 11, 30, 31)] == [1, 2, 3, 4]
