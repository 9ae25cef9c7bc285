"""Captured CUDA graphs compute what the uncaptured session does, whatever ran before.

A graph holds the addresses that it was captured with. The stand-in's kernels write a mixture of
what they read to the first element of each tensor, and to no other. So first elements are compared:
equal inputs give equal bits, and a replay over another loop's tensors gives itself away.
Flux also reads later parts of tensors, which nothing has written; so sessions take memory that is
zero when a tensor begins.
"""

from __future__ import annotations

import numpy as np
import pytest

from eri_runtime.bundle.safetensors_file import read_tensors
from eri_runtime.executors.ort.backend import CUDA
from eri_runtime.executors.step_form import StepForm
from eri_runtime.sampling import MAX_W
from tests.support.cuda_stand_in.cases import DYNAMIC_CASES, STATIC_CASES, STEP_CASES, trajectory
from tests.support.cuda_stand_in.measure import noted_sessions

SEEDS = (1, 2)


@pytest.fixture(scope="module", params=STATIC_CASES, ids=str)
def opened(request, exported):
    """A static step graph of each family."""
    return exported(request.param)


@pytest.fixture(scope="module", autouse=True)
def zeroed(device):
    with noted_sessions(device.memory_by_tensor):
        yield


@pytest.fixture
def stepper(opened):
    with CUDA.stepper(opened.step, opened.spec) as stepper:
        yield stepper


@pytest.fixture(scope="module")
def expected(opened):
    """Both trajectories, step by step from arrays, on a session that captures nothing."""
    with noted_sessions(capture=False) as sessions, CUDA.stepper(opened.step, opened.spec):
        return {seed: directly(sessions[-1], trajectory(opened, seed)) for seed in SEEDS}


def directly(session, drawn):
    """The first elements of each state, each run with arrays from the host."""
    x, found = drawn.x, []
    history = np.stack(drawn.remembered)
    for row in drawn.rows:
        inputs = {"x": x, "history": history, "noise": np.stack(row.noises), **fixed(drawn, row)}
        x, history, denoised = session.run(["x_next", "history_next", "denoised"], inputs)
        found.append((x.flat[0], denoised.flat[0], history.flat[0]))
    return found


def fixed(drawn, row):
    """The row, mix and conditions of a step, as the graph takes them."""
    form, images = StepForm(per_image=True), len(drawn.x)
    bound = form.bound(drawn.mix, drawn.conditions, drawn.layout)
    return {"row": np.array(form.row(row.columns, images)), **bound}


def begin(stepper, drawn):
    """A loop's states, to be asked for one by one."""
    loop = stepper.loop(drawn.x.shape, MAX_W)
    loop.bind("pass", drawn.mix, drawn.conditions, drawn.layout)
    return loop.run(drawn.rows, loop.begin(drawn.x, drawn.remembered))


def first_elements(state):
    assert state.finite
    return state.x.flat[0], state.denoised.flat[0], state.remembered[0].flat[0]


def run(stepper, drawn):
    return [first_elements(state) for state in begin(stepper, drawn)]


def test_the_reference_tells_trajectories_and_steps_apart(expected):
    numbers = [number for seed in SEEDS for state in expected[seed] for number in state]
    assert len(set(numbers)) == len(numbers)


def test_one_trajectory(stepper, opened, expected, device):
    with device.counting() as counts:
        assert run(stepper, trajectory(opened, SEEDS[0])) == expected[SEEDS[0]]
    assert counts["REPLAYS"] > 0


def test_one_trajectory_after_another(stepper, opened, expected):
    for seed in SEEDS * 3:
        assert run(stepper, trajectory(opened, seed)) == expected[seed]


def test_one_trajectory_after_another_whose_last_state_is_kept(stepper, opened, expected):
    """So that the second gets other memory than the first had."""
    last = []
    for seed in SEEDS * 2:
        *_, state = begin(stepper, trajectory(opened, seed))
        last.append(state)
        assert first_elements(state) == expected[seed][-1]
    for seed, state in zip(SEEDS * 2, last, strict=True):
        assert first_elements(state) == expected[seed][-1]


def test_two_trajectories_in_turns(stepper, opened, expected):
    loops = [begin(stepper, trajectory(opened, seed)) for seed in SEEDS]
    turns = [[first_elements(state) for state in pair] for pair in zip(*loops, strict=True)]
    for seed, found in zip(SEEDS, zip(*turns, strict=True), strict=True):
        assert list(found) == expected[seed]


@pytest.mark.parametrize("case", DYNAMIC_CASES, ids=str)
def test_trajectories_of_different_sizes_in_turns(case, exported):
    """Each size has a graph; what one leaves in host memory is not what another reads there."""
    opened = exported(case)
    drawn = [trajectory(opened, SEEDS[0], example=example) for example in (0, 1)]
    assert drawn[0].x.shape != drawn[1].x.shape
    with noted_sessions(capture=False) as sessions, CUDA.stepper(opened.step, opened.spec):
        expected = [directly(sessions[-1], each) for each in drawn]
    with CUDA.stepper(opened.step, opened.spec) as stepper:
        for _ in range(2):
            loops = [begin(stepper, each) for each in drawn]
            turns = [[first_elements(state) for state in pair] for pair in zip(*loops, strict=True)]
            assert [list(found) for found in zip(*turns, strict=True)] == expected


def test_kept_states_do_not_change(stepper, opened, expected):
    kept = [list(begin(stepper, trajectory(opened, seed))) for seed in SEEDS * 2]
    for seed, states in zip(SEEDS * 2, kept, strict=True):
        assert [first_elements(state) for state in states] == expected[seed]


def test_new_weights(stepper, opened):
    """Graphs of the old weights are not replayed, in a loop that is open and in a later one."""
    drawn = trajectory(opened, SEEDS[0])
    for scale in (2, 3):
        run(stepper, drawn)
        weights = changed_weights(opened, scale)
        with (
            noted_sessions(capture=False) as sessions,
            CUDA.stepper(opened.step, opened.spec, overrides=weights),
        ):
            reference = directly(sessions[-1], drawn)
        stepper.replace(weights)
        assert run(stepper, drawn) == reference


def changed_weights(opened, scale):
    """Every matrix of the network, multiplied by a number."""
    tensors = read_tensors(opened.folder / "weights.safetensors")
    return {
        name: (np.asarray(values, np.float32) * scale).astype(values.dtype)
        for name, values in tensors.items()
        if values.ndim > 1
    }


@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_a_step_graph_can_be_captured(case, exported, device):
    """ONNX Runtime accepts the capture of one binding; later runs replay the graph, whole."""
    opened = exported(case)
    drawn = trajectory(opened, SEEDS[0], steps=1)
    with noted_sessions(capture=False) as sessions, CUDA.stepper(opened.step, opened.spec):
        binding = bound(sessions[-1], drawn)
        with device.counting() as uncaptured:
            sessions[-1].run_with_iobinding(binding)
    with noted_sessions(capture=True) as sessions, CUDA.stepper(opened.step, opened.spec):
        binding = bound(sessions[-1], drawn)
        with device.counting() as first:  # ONNX Runtime runs it, then captures and replays it
            sessions[-1].run_with_iobinding(binding)
        with device.counting() as later:
            for _ in range(4):
                sessions[-1].run_with_iobinding(binding)
    assert first["CAPTURES"] == 1
    assert first["FORBIDDEN_IN_CAPTURE"] == 0
    assert later["REPLAYS"] == 4
    assert later["GRAPH_KERNELS"] == later["KERNELS"] == 4 * uncaptured["KERNELS"] > 0


def bound(session, drawn):
    """A binding of a step's tensors on the device."""
    import onnxruntime as ort

    (row,) = drawn.rows
    inputs = {"x": drawn.x, "history": np.stack(drawn.remembered), "noise": np.stack(row.noises)}
    inputs |= fixed(drawn, row)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    shapes = {"x_next": drawn.x.shape, "history_next": inputs["history"].shape}
    shapes |= {"denoised": drawn.x.shape, "magnitude": (len(drawn.x),)}
    for name, shape in shapes.items():
        value = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), "cuda", 0)
        binding.bind_ortvalue_output(name, value)
    return binding
