"""A denoiser in parts: the same numbers, one part open at a time, live weights, refusals."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import weakref

import numpy as np
import pytest

import eri_runtime as eri
from eri_export import export
from eri_export.commands.dry_run import dry_run_lines
from eri_export.commands.export import export_command
from eri_export.plan.plan import make_plan
from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.bundle.spec import LORAS, RANK
from eri_runtime.commands.describe_bundle import describe_bundle
from eri_runtime.errors import BackendError, SizeError
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import Settings
from eri_runtime.executors.openvino.backend import OPENVINO
from eri_runtime.executors.ort import session as module
from eri_runtime.executors.ort.backend import CPU
from eri_runtime.executors.sequential_offload import open_segmented
from tests.support.components import STATIC, only

FAMILIES = ["sdxl", "sd35", "flux"]
# both map their weights, so that both multiply them unpacked, in one order
PAGED = Settings(threads=1, low_memory=True)
PARTS = Settings(threads=1, streamed=True)
ODD = {"height": 12, "width": 20, "tokens": 5, "image_tokens": 15}


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request):
    """Each family's."""
    return eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))


@pytest.fixture(scope="module")
def sd35(sd35_bundle):
    return eri.read_bundle(sd35_bundle)


@pytest.fixture(scope="module")
def thrifty(sd35_checkpoint, tmp_path_factory):
    """In 16 bits, with inputs for LoRAs, an attention of one head at a time."""
    target = tmp_path_factory.mktemp("thrifty") / "bundle"
    words = {"precision": "fp16,vae=fp32", "lora_rank": 2, "attention_slice": "max"}
    with only({"text_encoder", "denoiser"}):
        return export(sd35_checkpoint, target, ranges=STATIC, **words)


def denoiser(bundle):
    return bundle.components["denoiser"]


def drawn(spec, batch=1, **sizes):
    """Inputs of a component, of odd sizes unless told; a clock near 1 keeps sinusoids small."""
    rng = np.random.default_rng(batch)
    usual = {name: min(max(ODD.get(name, 1), r.min), r.max) for name, r in spec.ranges.items()}
    sizes = {**usual, "batch": batch, **sizes}
    shapes = {t.name: tuple(sizes.get(n, n) for n in t.shape) for t in spec.inputs}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def whole(bundle, overrides=None, backend=CPU):
    spec = denoiser(bundle)
    return backend.executor(bundle.path(spec.graph), spec, PAGED, overrides or {})


def parts(bundle, overrides=None, backend=CPU):
    return open_segmented(bundle, denoiser(bundle), backend, PARTS, overrides or {})


def error(ours, expected):
    (name,) = expected
    return np.abs(ours[name] - expected[name]).max() / np.abs(expected[name]).max()


@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_whole(bundle, batch):
    spec = denoiser(bundle)
    with whole(bundle) as one, parts(bundle) as other:
        for inputs in (drawn(spec, batch), drawn(spec, batch, tokens=9)):
            expected = one.run(inputs)
            made = other.run(inputs)
            assert error(made, expected) <= 1e-6
            np.testing.assert_array_equal(made["output"], other.run(inputs)["output"])


def test_sixteen_bits_loras_and_slices(thrifty):
    spec = denoiser(thrifty)
    assert (spec.precision, spec.attention_slice, spec.lora.rank) == ("fp16", 1, 2)
    inputs = drawn(spec, 2, **{LORAS: 2, RANK: 2})
    # products as large as a LoRA's, which sixteen bits hold
    inputs = {k: v * np.float32(0.1 if k.startswith("lora_") else 1) for k, v in inputs.items()}
    with whole(thrifty) as one, parts(thrifty) as other:
        # what one engine computes at once is rounded once, and is cut in the other
        assert error(other.run(inputs), one.run(inputs)) <= 1e-2
        without = {k: v * np.float32(not k.startswith("lora_")) for k, v in inputs.items()}
        assert error(other.run(without), other.run(inputs)) > 0.05


def test_one_part_is_open_at_a_time(sd35, monkeypatch):
    opened, alive, opening = [], set(), module.open_session

    def counted(graph, *arguments, **options):
        gc.collect()
        assert not alive
        session = opening(graph, *arguments, **options)
        opened.append(graph.name)
        alive.add(graph.name)
        weakref.finalize(session, alive.discard, graph.name)
        return session

    monkeypatch.setattr(module, "open_session", counted)
    names = [segment.graph.rpartition("/")[2] for segment in denoiser(sd35).segments]
    assert len(names) > 2
    with parts(sd35) as executor:
        assert opened == []
        for _ in range(2):
            executor.run(drawn(denoiser(sd35)))
    gc.collect()
    assert opened == names * 2
    assert not alive


def test_a_value_is_let_go_after_its_last_reader(sd35):
    spec = denoiser(sd35)
    made = [name for segment in spec.segments for name in segment.outputs]
    with parts(sd35) as executor:
        done = [name for part in executor._segments for name in part.done]
        for i, part in enumerate(executor._segments):
            later = {name for each in spec.segments[i + 1 :] for name in each.inputs}
            assert not part.done & later
    assert sorted(done) == sorted({*made, *(t.name for t in spec.inputs)} - {"output"})


def changed(bundle):
    """Other values for a weight of every segment, and for one that two have if there is one."""
    spec = denoiser(bundle)
    stored = read_tensors(bundle.path(spec.weights))
    rng = np.random.default_rng(3)
    names = dict.fromkeys(segment.weights[0] for segment in spec.segments)
    return {
        name: (stored[name] + 0.1 * rng.standard_normal(stored[name].shape)).astype("f")
        for name in names
    }


def test_weights_there_and_back(bundle):
    inputs, other = drawn(denoiser(bundle), 2), changed(bundle)
    with parts(bundle) as executor, whole(bundle, other) as expected:
        before = executor.run(inputs)["output"]
        executor.replace(other)
        there = executor.run(inputs)
        assert error(there, expected.run(inputs)) <= 1e-6
        assert np.abs(there["output"] - before).max() > 1e-3 * np.abs(before).max()
        executor.replace({})
        np.testing.assert_array_equal(executor.run(inputs)["output"], before)
    with parts(bundle, other) as opened:
        np.testing.assert_array_equal(opened.run(inputs)["output"], there["output"])


def test_openvino(sd35):
    inputs, other = drawn(denoiser(sd35), 2), changed(sd35)
    for overrides in ({}, other):
        with whole(sd35, overrides) as expected, parts(sd35, overrides, OPENVINO) as executor:
            # float32 in another order of summation
            assert error(executor.run(inputs), expected.run(inputs)) <= 1e-5


def test_inputs_are_checked(sd35):
    with parts(sd35) as executor, pytest.raises(SizeError, match="sample"):
        executor.run({**drawn(denoiser(sd35)), "sample": np.zeros((1, 3, 8, 8), np.float32)})


class Other(Backend):
    """An engine that opens no part of a graph."""

    def refusal(self, spec):
        return None

    words = executor = stepper = None


def test_refusals(sd35):
    spec = denoiser(sd35)
    with pytest.raises(BackendError, match="Other"):
        open_segmented(sd35, spec, Other(), PARTS)
    old = dataclasses.replace(spec, segments=())
    with pytest.raises(BackendError, match="export it again"):
        open_segmented(sd35, old, CPU, PARTS)
    narrow = dataclasses.replace(spec, precision="bf16")
    with pytest.raises(BackendError, match="bfloat16"):
        open_segmented(sd35, narrow, CPU, PARTS)


def test_a_part_that_is_missing(sd35):
    spec = denoiser(sd35)
    lost = dataclasses.replace(spec.segments[1], graph="denoiser/none.onnx")
    spec = dataclasses.replace(spec, segments=(spec.segments[0], lost, *spec.segments[2:]))
    executor = open_segmented(sd35, spec, CPU, PARTS)
    with executor, pytest.raises(BackendError, match=r"none\.onnx"):
        executor.run(drawn(spec))


def test_what_inspect_says(thrifty):
    lines = list(describe_bundle(thrifty))
    assert lines.count("  attention 1 head at a time") == 1
    count = len(denoiser(thrifty).segments)
    assert f"  {count} segments, to run with the weights of one in memory" in lines
    report = json.loads(thrifty.path("parity.json").read_text())
    (metric,) = (each for each in report["metrics"] if each["case"] == "segments")
    assert 0 <= metric["max_rel"] <= metric["tolerance"]


def test_what_the_forecast_says(sd35_checkpoint, tmp_path):
    said = "\n".join(dry_run_lines(make_plan(sd35_checkpoint, attention_slice=3), tmp_path / "new"))
    assert "attention 3 heads at a time" in said
    whole = "\n".join(dry_run_lines(make_plan(sd35_checkpoint), tmp_path / "new"))
    assert "heads at a time" not in whole


@pytest.mark.parametrize(("text", "expected"), [("2", 2), ("-1", -1), ("auto", "auto")])
def test_the_option(text, expected):
    parser = argparse.ArgumentParser()
    export_command(parser.add_subparsers())
    options = parser.parse_args(["export", "somewhere", "--attention-slice", text])
    assert options.attention_slice == expected
