"""What a pipeline does when memory ends, with engines that have little of it.

The engine is ONNX Runtime, behind a wrapper that refuses what its budget does not allow in the
words of ONNX Runtime's arena; `benchmarks/memory_limits.py` takes real memory away.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import OutOfMemoryError, UsageError
from eri_runtime.executors import choice
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import FROM_FILE, Executor
from eri_runtime.executors.ort.backend import CPU
from eri_runtime.executors.step_graph import Stepper
from eri_runtime.memory.available import AvailableMemory
from eri_runtime.memory.fallbacks import RequestSize
from eri_runtime.memory.guard import MARGIN, OVERHEAD, Guard
from eri_runtime.memory.out_of_memory import is_exhausted, requested_bytes
from eri_runtime.pipeline import pipeline

WORDS = {"num_inference_steps": 3, "guidance_scale": 3.0, "seed": 0, "output_type": "np"}
PROMPTS = ["a red heart", "two black cats", "", "a house"]
TOLD = "Failed to allocate memory for requested buffer of size {}"


def refuse(size):
    raise RuntimeError(TOLD.format(size))


@dataclass
class Budget:
    """What an engine has room for; every call that was allowed is in `log`."""

    rows: int = 99
    images: int = 99
    side: int = 9999  # latents
    opened: int = 99
    mapped: bool = False  # only weights that stay in their files fit
    log: list = field(default_factory=list)
    open: set = field(default_factory=set)

    def opening(self, name, settings):
        if len(self.open) >= self.opened or (self.mapped and not settings.low_memory):
            refuse(10**9)
        self.log.append(("open", name))

    def running(self, name, shape):
        most = {"denoiser": self.rows, "vae_decoder": self.images}.get(name, 99)
        side = max(shape[2:]) if name == "vae_decoder" else 0
        if shape[0] > most or side > self.side:
            refuse(10**6 * shape[0])
        self.log.append((name, shape))


class Narrow(Executor):
    def __init__(self, inner, name, budget):
        self.inner, self.spec, self.name, self.budget = inner, inner.spec, name, budget
        budget.open.add(self)

    def run(self, inputs):
        first = self.spec.inputs[0].name
        self.budget.running(self.name, inputs[first].shape)
        return self.inner.run(inputs)

    def replace(self, overrides):
        self.inner.replace(overrides)

    def close(self):
        self.budget.open.discard(self)
        self.inner.close()


class NarrowStepper(Stepper):
    """Holds as many rows as its budget, and fails in the row `after` as real memory might."""

    def __init__(self, inner, budget):
        self.inner, self.budget = inner, budget
        budget.open.add(self)

    def loop(self, shape, width):
        loop, budget = self.inner.loop(shape, width), self.budget
        bind = loop.bind

        def checked(key, mix, conditions, layout=None):
            budget.running("denoiser", (mix.size, *shape[1:]))
            bind(key, mix, conditions, layout)

        loop.bind = checked
        return loop

    def close(self):
        self.budget.open.discard(self)
        self.inner.close()


@dataclass(frozen=True)
class NarrowBackend(Backend):
    budget: Budget
    can_map_weights = True

    def refusal(self, spec):
        return CPU.refusal(spec)

    def streaming_refusal(self, spec):
        return "no parts"

    def words(self, settings):
        return CPU.words(settings)

    def graph_file(self, graph, files):
        return CPU.graph_file(graph, files)

    def executor(self, graph, spec, settings, overrides=FROM_FILE):
        self.budget.opening(graph.parent.name, settings)
        inner = CPU.executor(graph, spec, settings, overrides)
        return Narrow(inner, graph.parent.name, self.budget)

    def stepper(self, graph, spec, settings, overrides=FROM_FILE):
        self.budget.opening("step", settings)
        return NarrowStepper(CPU.stepper(graph, spec, settings, overrides), self.budget)


def narrow(root, budget, **options) -> eri.Pipeline:
    bundle = eri.read_bundle(root)
    engine = dataclasses.replace(
        choice.choose(bundle, "cpu", threads=1), backend=NarrowBackend(budget)
    )
    return eri.Pipeline(bundle, engine, engine.stepper, **options)


@pytest.fixture(params=["sdxl", "sd35", "flux"])
def root(request):
    return request.getfixturevalue(f"{request.param}_bundle")


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("eri")]


def test_with_memory_enough_nothing_is_changed(sd35_bundle, caplog):
    with narrow(sd35_bundle, Budget()) as pipe, eri.load(sd35_bundle, "cpu", threads=1) as usual:
        ours, theirs = (each(PROMPTS, **WORDS) for each in (pipe, usual))
    np.testing.assert_array_equal(ours.images, theirs.images)
    assert not lines(caplog)


def test_a_step_takes_fewer_rows_until_they_fit(root, caplog):
    """Pictures differ by what another batch rounds: 1e-5, as of the two loops."""
    budget = Budget(rows=1)
    with eri.load(root, "cpu", threads=1) as usual:
        expected = usual(PROMPTS, **WORDS)
    with narrow(root, budget) as pipe:
        found = pipe(PROMPTS, **WORDS)
    np.testing.assert_allclose(found.latents, expected.latents, atol=1e-4)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-3)
    rows = 8 if pipe.bundle.family != "flux" else 4
    ways = [f"{n} of {rows} rows at once" for n in (4, 2, 1) if n < rows]
    said = lines(caplog)
    assert len(said) == 1 + len(ways)
    assert "everything else is closed" in said[0]
    for line, words in zip(said[1:], ways, strict=True):
        assert line.startswith("too little memory for denoiser (")
        assert line.endswith(words)


def test_it_goes_on_from_the_last_step(sd35_bundle):
    """Memory that ends in the middle costs no step that was taken."""
    budget, seen = Budget(), []
    with narrow(sd35_bundle, budget, loop="numpy") as pipe:
        expected = pipe("a red heart", **WORDS).latents
        request = pipe.request("a red heart", **WORDS)
        for step in pipe.denoise(request):
            seen.append(step.index)
            budget.rows = 1 if step.index == 1 else budget.rows
        calls = [shape for name, shape in budget.log if name == "denoiser"]
    assert seen == [0, 1, 2]
    assert [shape[0] for shape in calls[3:]] == [2, 2, 1, 1]  # two steps of two rows, then halves
    np.testing.assert_allclose(step.x, expected, atol=1e-4)


def test_what_fitted_is_remembered_and_smaller_requests_are_as_before(sd35_bundle, caplog):
    budget = Budget(rows=4)
    with narrow(sd35_bundle, budget) as pipe:
        small = pipe(PROMPTS[:2], **WORDS).images
        pipe(PROMPTS, **WORDS)
        assert len(lines(caplog)) == 2
        caplog.clear()
        pipe(PROMPTS, **WORDS)
        pipe([*PROMPTS, "a heart"], **WORDS)  # larger: begins with what fitted
        assert not lines(caplog)
        np.testing.assert_array_equal(pipe(PROMPTS[:2], **WORDS).images, small)


def test_the_decoder_takes_fewer_images_and_then_tiles(sd35_bundle, caplog):
    words = WORDS | {"height": 64, "width": 48}
    with narrow(sd35_bundle, Budget()) as pipe:
        expected = pipe(PROMPTS[:3], **words)
    caplog.clear()
    with narrow(sd35_bundle, Budget(images=2)) as pipe:
        found = pipe(PROMPTS[:3], **words)
    np.testing.assert_array_equal(found.latents, expected.latents)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-5)
    assert lines(caplog)[-1].endswith("1 of 3 images at once in the VAE")


def test_one_component_at_a_time(root, caplog):
    """As diffusers' model offloading: each is opened when it is needed and closed after."""
    budget = Budget(opened=1)
    with eri.load(root, "cpu", threads=1) as usual:
        expected = usual(PROMPTS[0], **WORDS)
    with narrow(root, budget) as pipe:
        found = pipe(PROMPTS[0], **WORDS)
        assert not budget.open
    np.testing.assert_array_equal(found.images, expected.images)
    assert lines(caplog)[-1].endswith("one component in memory at a time")


def test_offloading_that_is_asked_for(root):
    budget = Budget(opened=1)
    config = eri.MemoryEfficientSamplingConfig(enable_cpu_offload=True)
    with narrow(root, budget, memory=config) as pipe:
        first = pipe(PROMPTS[0], **WORDS)
        assert not budget.open
        second = pipe(PROMPTS[0], **WORDS)
    np.testing.assert_array_equal(first.images, second.images)
    opened = [name for what, name in budget.log if what == "open"]
    assert opened.count("vae_decoder") == opened.count("step") == 2


def test_weights_are_left_in_their_files_when_nothing_else_helps(sd35_bundle, caplog):
    with narrow(sd35_bundle, Budget(mapped=True)) as pipe:
        found = pipe("a heart", **WORDS)
    with eri.load(sd35_bundle, "cpu", threads=1, low_memory=True) as usual:
        np.testing.assert_array_equal(found.images, usual("a heart", **WORDS).images)
    assert lines(caplog)[-1].endswith("weights left in their files")


def test_where_nothing_fits_the_error_says_how_much_was_needed(sd35_bundle):
    budget = Budget(rows=0)
    with narrow(sd35_bundle, budget) as pipe:
        small = pipe.encode_prompt("a heart").embeds
        with pytest.raises(OutOfMemoryError, match="denoiser: got no memory for it") as raised:
            pipe(PROMPTS[:2], **WORDS)
        assert raised.value.needed == 10**6
        assert raised.value.component == "denoiser"
        assert "1 rows at once" in str(raised.value)
        assert not budget.open
        budget.rows = 99
        np.testing.assert_array_equal(pipe.encode_prompt("a heart").embeds, small)
        after = pipe("a heart", **WORDS).images  # smaller, so as if nothing had happened
    with narrow(sd35_bundle, Budget()) as fresh:
        np.testing.assert_array_equal(after, fresh("a heart", **WORDS).images)


def test_memory_that_ends_after_the_decoder_is_told_as_well(sd35_bundle, monkeypatch):
    """Pictures are arrays of NumPy's, which has an error of its own."""
    to_unit, failing = pipeline.to_unit, [True]

    def unit(decoded):
        if failing and failing.pop(0):
            raise MemoryError
        return to_unit(decoded)

    monkeypatch.setattr(pipeline, "to_unit", unit)
    with narrow(sd35_bundle, Budget()) as pipe:
        retried = pipe("a heart", **WORDS).images
        np.testing.assert_array_equal(pipe("a heart", **WORDS).images, retried)
        failing += [True] * 99
        with pytest.raises(OutOfMemoryError, match="vae_decoder: got no memory for it"):
            pipe("a heart", **WORDS)


@pytest.mark.parametrize("limit", ["memory of the machine", "memory.max of cgroup /job"])
def test_where_its_lack_would_kill_a_run_is_refused_before(limit):
    need = 10**9
    enough = int(need * MARGIN + OVERHEAD)
    left = [
        AvailableMemory(bytes=enough - 1, limit=limit),
        AvailableMemory(bytes=enough, limit=limit),
    ]
    guard = Guard(lambda *_: need, lambda: left.pop(0))
    with pytest.raises(
        OutOfMemoryError, match=r"denoiser: got 1,3\d\d MB left .*1,000 MB"
    ) as raised:
        guard.check("denoiser", {"batch": 2})
    assert (raised.value.component, raised.value.needed) == ("denoiser", need)
    guard.check("denoiser", {"batch": 2})
    guard.check("denoiser", {"batch": 2})  # it passed, so nobody is asked again
    assert not left
    guard.forget()
    with pytest.raises(IndexError):
        guard.check("denoiser", {"batch": 2})


def test_what_is_refused_by_itself_or_unknown_is_tried():
    nothing = AvailableMemory(bytes=0, limit="memory of the machine")
    for need, left in (
        (None, nothing),
        (9, AvailableMemory(bytes=0, limit="ulimit -v")),
        (9, None),
    ):
        Guard(lambda *_, need=need: need, lambda left=left: left).check("denoiser", {"batch": 1})
    with pytest.raises(OutOfMemoryError):
        Guard(lambda *_: 9, lambda: nothing).check("denoiser", {"batch": 1})


def test_other_errors_are_not_of_memory(sd35_bundle, monkeypatch):
    with narrow(sd35_bundle, Budget()) as pipe:
        monkeypatch.setattr(Budget, "running", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe("a heart", **WORDS)


def test_a_step_graph_that_must_run_is_not_taken_apart(sd35_bundle):
    with (
        narrow(sd35_bundle, Budget(rows=1), loop="step") as pipe,
        pytest.raises(OutOfMemoryError, match="denoiser"),
    ):
        pipe("a heart", **WORDS)


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (MemoryError(), None),
        (OSError(12, "Cannot allocate memory"), None),
        (RuntimeError(TOLD.format(1048576)), 1048576),
        (RuntimeError("Non-zero status code ... Status Message: std::bad_alloc"), None),
        (RuntimeError("PosixThread(...) pthread_create failed, error code: 12"), None),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), None),
    ],
)
def test_words_of_engines_for_memory_that_ends(error, needed):
    assert is_exhausted(error)
    assert requested_bytes(error) == needed
    wrapped = ValueError("no graph")
    wrapped.__cause__ = error
    assert is_exhausted(wrapped)
    assert requested_bytes(wrapped) == needed


@pytest.mark.parametrize("text", ["a bad alloy", "shape mismatch", "error code: 1", ""])
def test_words_for_something_else(text):
    assert not is_exhausted(RuntimeError(text))


def test_a_load_holds_another_that_is_smaller_in_every_way():
    load = RequestSize(images=2, rows=4, height=64, width=32)
    assert load.holds(load)
    assert load.holds(dataclasses.replace(load, height=32, width=64))
    for smaller in ({"images": 3}, {"rows": 5}, {"height": 65}):
        assert not load.holds(dataclasses.replace(load, **smaller))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"enable_cpu_offload": 1}, "enable_cpu_offload"),
        ({"slice_size": 2}, "slice_size"),
        ({"enable_attention_slicing": True, "slice_size": 0}, "slice_size"),
        ({"tile_size": 0}, "tile_size"),
        ({"enable_vae_tiling": None}, "enable_vae_tiling"),
    ],
)
def test_a_config_that_says_nothing_sensible(fields, name):
    with pytest.raises(UsageError, match=f"^{name}: "):
        eri.MemoryEfficientSamplingConfig(**fields)


def test_what_a_bundle_has_not_is_refused_when_it_is_loaded(sd35_bundle):
    config = eri.MemoryEfficientSamplingConfig(enable_attention_slicing=True, slice_size=1)
    with pytest.raises(UsageError, match="--attention-slice 1"):
        eri.load(sd35_bundle, "cpu", memory=config)
