"""Steps of the TensorRT executor: graphs, buffers and kernels, with a stand-in for the GPU.

Loops run here as the interface of a stepper allows it, which is more than a pipeline does.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import manifest
from eri_runtime.executors import CPU
from eri_runtime.executors.base import Settings
from eri_runtime.executors.step_graph import Row
from eri_runtime.executors.tensorrt.kernel_cache import kernel_file
from eri_runtime.executors.tensorrt.plans import Machine
from tests.support import stand_in_trt as stand_in
from tests.support.mixed_images import draw, run
from tests.support.shared_row import old_bundle
from tests.support.trt_steps import Inputs, assert_same, captures, opened, read, weights_of


@pytest.fixture
def stepper(device, planned):
    found, _ = opened(planned)
    with found:
        yield found


@pytest.fixture
def oracle(planned):
    """ONNX Runtime's stepper, on one thread as the stand-in's."""
    bundle = manifest.read(planned)
    spec = bundle.components["denoiser"]
    graph = bundle.path(CPU.graph_file(spec.step, bundle.files))
    with CPU.stepper(graph, spec, Settings(threads=1)) as stepper:
        yield stepper


def test_a_graph_holds_the_kernels_of_these_shapes(stepper, oracle, planned, device):
    """Not the general ones, which a lazy context would run when it is captured."""
    inputs = Inputs(planned, 1)
    expected = inputs.run(oracle)
    for _ in range(3):
        assert_same(inputs.run(stepper), expected)
    assert captures(device) == 1


def test_a_loop_may_run_again_and_its_kept_states_stay(stepper, planned):
    """Also while an earlier run of the same loop is still going on, with other rows."""
    one, other = Inputs(planned, 1), Inputs(planned, 2)
    expected = one.run(stepper)
    loop = one.loop(stepper)
    reversed_rows = list(loop.run(one.rows()[::-1], loop.begin(one.x, ())))
    expected_reversed = [read(state) for state in reversed_rows]
    for _ in range(3):
        slow = loop.run(one.rows(), loop.begin(one.x, ()))
        kept = [next(slow)]
        again = list(loop.run(one.rows()[::-1], loop.begin(one.x, ())))
        others = other.run(stepper)
        kept += slow
        assert_same([read(state) for state in kept], expected)
        assert_same([read(state) for state in again], expected_reversed)
        assert_same(others, other.run(stepper))
    assert_same([read(state) for state in reversed_rows], expected_reversed)


def test_states_that_are_dropped_unread_leave_the_last_one_right(stepper, planned):
    """Their slots are used again before the device has read the rows that lie in them."""
    inputs = Inputs(planned, 1)
    loop = inputs.loop(stepper)
    rows = inputs.rows() * 3
    *_, expected = (read(state) for state in loop.run(rows, loop.begin(inputs.x, ())))
    for state in loop.run(rows, loop.begin(inputs.x, ())):  # noqa: B007
        pass
    assert_same([read(state)], [expected])


def test_loops_with_other_conditions_take_turns_step_by_step(stepper, oracle, planned):
    """They share one graph; each step finds its own conditions, row, noise and state."""
    several = [Inputs(planned, seed) for seed in range(3)]
    expected = [each.run(oracle) for each in several]
    for _ in range(2):
        loops = [each.loop(stepper) for each in several]
        runs = [
            loop.run(each.rows(), loop.begin(each.x, ()))
            for loop, each in zip(loops, several, strict=True)
        ]
        found = list(zip(*zip(*runs, strict=True), strict=True))
        for mine, reference in zip(found, expected, strict=True):
            assert_same([read(state) for state in mine], reference)
    assert len(stepper.steps) == 1


def test_images_of_one_call_may_differ(stepper, oracle, planned, device):
    """In row and number of conditions; calls of the same shapes share a graph."""
    spec = manifest.read(planned).components["denoiser"]
    for seed, counts in enumerate([(2, 1, 1), (1, 2, 1)]):
        images, shared = draw(spec, counts, seed)
        expected = [read(state) for state in run(oracle, images, shared, steps=3)]
        assert_same([read(state) for state in run(stepper, images, shared, steps=3)], expected)
    assert captures(device) == len(stepper.steps) == 1


def test_an_image_that_is_not_finite_is_named(stepper, planned):
    spec = manifest.read(planned).components["denoiser"]
    images, shared = draw(spec, (2, 1))
    images[1].x.flat[0] = np.nan
    (state,) = run(stepper, images, shared)
    assert not state.finite
    assert state.finite_images.tolist() == [True, False]
    assert np.isfinite(state.x[0]).all()


@pytest.mark.parametrize("counts", [(1,), (1, 1)])
def test_a_plan_of_an_older_step_graph_runs(device, sd35_bundle, tmp_path, counts):
    """Its row is one for all images, and its magnitude too."""
    root = old_bundle(sd35_bundle, tmp_path / "older").root
    planned = stand_in.with_plans(root, tmp_path / "planned")
    spec = manifest.read(planned).components["denoiser"]
    images, shared = draw(spec, counts)
    for image in images:
        image.row = images[0].row
    stepper, _ = opened(planned)
    bundle = manifest.read(planned)
    path = bundle.path(CPU.graph_file(spec.step, bundle.files))
    with stepper, CPU.stepper(path, spec, Settings(threads=1)) as oracle:
        expected = [read(state) for state in run(oracle, images, shared, steps=3)]
        assert_same([read(state) for state in run(stepper, images, shared, steps=3)], expected)
        images[-1].x.flat[0] = np.inf
        (state,) = run(stepper, images, shared)
        assert state.finite_images.tolist() == [True] * (len(counts) - 1) + [False]


def test_arrays_changed_between_loops_are_uploaded_again(stepper, oracle, planned):
    """The same array objects with other values are other conditions."""
    inputs, other = Inputs(planned, 1), Inputs(planned, 2)
    expected = Inputs(planned, 1).run(oracle), other.run(oracle)
    assert_same(inputs.run(stepper), expected[0])
    for name, values in other.conditions.items():
        inputs.conditions[name][...] = values
    inputs.x, inputs.table = other.x, other.table
    assert_same(inputs.run(stepper), expected[1])


def test_two_passes_of_the_same_shapes_share_a_graph(stepper, planned, device):
    """Only what differs between them is uploaded when they take turns."""
    one, other = Inputs(planned, 1), Inputs(planned, 2)
    loop = stepper.loop(one.x.shape, 2)
    loop.bind("one", one.mix, one.conditions)
    loop.bind("shared", one.mix, one.conditions)
    loop.bind("other", one.mix, other.conditions)

    def run(*keys):
        rows = [Row(key, one.table[1], ()) for key in keys]
        del device.calls[:]
        return [read(state) for state in loop.run(rows, loop.begin(one.x, ()))]

    run("one")
    expected = run("one", "one")
    copies = device.calls.count("cudaMemcpyAsync")
    assert_same(run("one", "shared"), expected)
    assert device.calls.count("cudaMemcpyAsync") == copies
    mixed = run("one", "other")
    assert device.calls.count("cudaMemcpyAsync") == copies + len(other.conditions)
    assert_same(mixed[:1], expected[:1])
    assert np.abs(mixed[1][0] - expected[1][0]).max() > 1e-4
    assert captures(device) == 0
    assert len(stepper.steps) == 1


def test_reading_a_state_waits_for_no_later_step(stepper, planned, device):
    inputs = Inputs(planned, 1)
    loop = inputs.loop(stepper)
    first, *later = loop.run(inputs.rows(), loop.begin(inputs.x, ()))
    queues = [thing for kind, thing in device.made.values() if kind == "stream"]
    assert first.finite
    waiting = max(len(queue.work) for queue in queues)
    assert waiting > len(later)
    first.x  # noqa: B018
    assert max(len(queue.work) for queue in queues) == waiting
    assert later[-1].finite


def test_weights_replaced_in_a_loop_are_those_of_the_next_step(device, sd35_bundle, tmp_path):
    """The graph of the old weights is not replayed."""
    root = stand_in.with_plans(sd35_bundle, tmp_path / "refit", ("refit",))
    name, tensors = weights_of(root)
    new = {name: tensors[name] * 1.5}
    inputs, (found, _) = Inputs(root, 1), opened(root)
    with found:
        old = inputs.run(found)
        loop = inputs.loop(found)
        run = loop.run(inputs.rows(), loop.begin(inputs.x, ()))
        before, kept = next(run), next(run)
        found.replace(new)
        after = read(next(run))
        assert_same([read(before), read(kept)], old[:2])
        count = captures(device)
        assert count == 1
        changed = inputs.run(found)
        assert captures(device) == count + 1
        found.replace({})
        assert_same(inputs.run(found), old)
    fresh, _ = opened(root)
    with fresh:
        fresh.replace(new)
        loop = inputs.loop(fresh)
        state = loop.begin(old[1][0], old[1][2:])
        (reference,) = loop.run(inputs.rows()[2:], state)
        assert_same([after], [read(reference)])
        assert_same(inputs.run(fresh), changed)
    assert np.abs(changed[-1][0] - old[-1][0]).max() > 1e-4


def test_a_plan_of_streamed_weights_is_not_captured(device, sd35_bundle, tmp_path, caplog):
    """TensorRT allocates while it streams; to build the plan again is of no use."""
    root = stand_in.with_plans(sd35_bundle, tmp_path / "streaming", ("streaming",))
    found, _ = opened(root, weight_budget=0)
    with found, caplog.at_level(logging.WARNING):
        assert len(Inputs(root, 1).run(found)) == 3
    (line,) = caplog.messages
    assert line.endswith("expected a plan built without --streaming")


# the kernels that are compiled on this machine


def compiled(device):
    return device.calls.count("compile")


def cached(tmp_path):
    return sorted((tmp_path / "cache" / "eri" / "kernels").iterdir())


def test_kernels_are_compiled_by_the_first_process_only(device, planned, tmp_path):
    counts = []
    for _ in range(3):
        del device.calls[:]
        with eri.load(planned, "tensorrt", loop="step") as pipe:
            pipe("a red heart", height=32, width=48, num_inference_steps=3, output_type="np")
        counts.append(compiled(device))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]
    files = cached(tmp_path)
    assert [file.suffix for file in files] == [".cache"] * len(files)
    assert {file.name.split(".onnx-")[0] for file in files} >= {
        "denoiser-step",
        "vae_decoder-model",
    }


def test_a_new_size_adds_its_kernels_to_those_kept(stepper, planned, tmp_path):
    Inputs(planned, 1).run(stepper)
    (file,) = cached(tmp_path)
    before = json.loads(file.read_text())["kernels"]
    Inputs(planned, 1, size=6).run(stepper)
    assert [file] == cached(tmp_path)
    assert json.loads(file.read_text())["kernels"][: len(before)] == before
    assert len(json.loads(file.read_text())["kernels"]) == len(before) + 1


@pytest.mark.parametrize("damage", ["another GPU", "not a cache", "a folder"])
def test_kernels_that_are_no_use_are_compiled_again(damage, device, planned, tmp_path):
    inputs = Inputs(planned, 1)

    def run():
        del device.calls[:]
        found, _ = opened(planned)
        with found:
            return inputs.run(found)

    expected = run()
    (file,) = cached(tmp_path)
    if damage == "another GPU":
        file.write_text(file.read_text().replace("4090", "4080"))
    elif damage == "not a cache":
        file.write_bytes(b"\0" * 100)
    else:
        file.unlink()
        file.mkdir()
    assert_same(run(), expected)
    assert compiled(device) == 1
    assert_same(run(), expected)
    assert compiled(device) == (damage == "a folder")


def test_a_cache_that_cannot_be_written_is_logged_once(device, planned, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    found, _ = opened(planned)
    with found, caplog.at_level(logging.WARNING):
        for size in (4, 6):
            assert len(Inputs(planned, 1, size).run(found)) == 3
    (line,) = caplog.messages
    assert "compiled kernels are not kept" in line


def test_a_kernel_file_is_of_one_plan_library_and_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Machine(engine="tensorrt-rtx", version="1.7.1.116", capability="8.9")
    file = kernel_file("plans/a.plan", "00", machine)
    assert file.parent == tmp_path / "eri" / "kernels"
    assert file == kernel_file("plans/a.plan", "00", machine)
    others = [
        kernel_file("plans/a.plan", "01", machine),
        kernel_file("plans/a.plan", "00", replace(machine, version="1.8.0.1")),
        kernel_file("plans/a.plan", "00", replace(machine, capability="8.6")),
        kernel_file("plans/a.plan", "00", replace(machine, engine="tensorrt")),
    ]
    assert len({file, *others}) == 1 + len(others)


def test_tensorrt_itself_takes_a_strategy_and_keeps_no_kernels(
    device, planned, tmp_path, monkeypatch
):
    """It has no runtime cache and no specialization: its kernels are in the plan."""
    module = sys.modules["tensorrt_rtx"]
    monkeypatch.delattr(module, "DynamicShapesKernelSpecializationStrategy")
    monkeypatch.setattr(stand_in, "LAZY_RUNS", 0)
    monkeypatch.delattr(stand_in.Context, "is_stream_capturable")
    found, _ = opened(planned)
    with found:
        first, second = (Inputs(planned, 1).run(found) for _ in range(2))
    assert_same(second, first)
    assert captures(device) == 1
    assert "create_runtime_config" not in device.calls
    assert not (tmp_path / "cache").exists()
