"""Threads that share a pipeline: changes are served, closing waits, and nothing raw is raised."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import read_tensors
from eri_runtime.errors import EriError, UsageError
from eri_runtime.memory import MemoryEfficientSamplingConfig

WORDS = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 4, "output_type": "np"}
LONG = 120  # seconds until a test gives up
WAYS = {
    "cpu-step": ("cpu", "step", False),
    "cpu-numpy-offload": ("cpu", "numpy", True),
    "openvino-numpy": ("openvino", "numpy", False),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def pipe(request, sd35_bundle):
    backend, loop, offload = request.param
    memory = MemoryEfficientSamplingConfig(enable_cpu_offload=offload)
    with eri.load(sd35_bundle, backend, loop=loop, threads=1, memory=memory) as pipe:
        yield pipe


@pytest.fixture
def halved(pipe):
    """One tensor of the denoiser, halved."""
    spec = pipe.bundle.components["denoiser"]
    stored = read_tensors(pipe.bundle.path(spec.weights))
    name = next(iter(stored))
    return {name: stored[name] / 2}


class Running:
    """Threads that each call a function again and again, and what those raised."""

    def __init__(self, *functions):
        self.calls, self.errors, self._stop = [0] * len(functions), [], threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=each) for each in enumerate(functions)
        ]

    def _run(self, index, function):
        while not self._stop.is_set():
            try:
                function()
            except Exception as error:
                self.errors.append(error)
            self.calls[index] += 1

    @contextmanager
    def started(self):
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(LONG)
            assert not any(thread.is_alive() for thread in self._threads)

    def until(self, count):
        """Waits until each function was called so often."""
        end = time.monotonic() + LONG
        while min(self.calls) < count:
            assert time.monotonic() < end, self.calls
            time.sleep(0.01)


def test_a_swap_is_served_while_two_threads_generate_without_pause(pipe, halved):
    """It waits for one image of each thread at most; a few more are made around the wait."""
    with Running(*[lambda: pipe("a red heart", **WORDS)] * 2).started() as running:
        running.until(1)
        for tensors in (halved, {}):
            before = list(running.calls)
            pipe.update_weights(tensors) if tensors else pipe.reset_weights()
            later = [now - then for now, then in zip(running.calls, before, strict=True)]
            assert max(later) <= 20
    assert running.errors == []


def test_closing_waits_for_the_image_of_another_thread(pipe):
    base = pipe("a red heart", **WORDS).images
    begun, closing, made = threading.Event(), threading.Event(), []

    def pause(step):
        if step.index == 0:
            begun.set()
            assert closing.wait(LONG)

    thread = threading.Thread(
        target=lambda: made.append(pipe("a red heart", **WORDS, on_step=pause).images)
    )
    thread.start()
    assert begun.wait(LONG)
    closer = threading.Thread(target=pipe.close)
    closer.start()
    closing.set()
    for each in (thread, closer):
        each.join(LONG)
        assert not each.is_alive()
    np.testing.assert_array_equal(made[0], base)
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, base)


def test_a_change_from_a_callback_does_not_wait_for_one_that_waits_for_the_image(pipe, halved):
    changing, said = [], []

    def swap(step):
        if step.index == 0:
            changing.append(threading.Thread(target=pipe.update_weights, args=[halved]))
            changing[0].start()
            while not pipe._live._lock._queue:
                time.sleep(0.01)
            with pytest.raises(UsageError) as caught:
                pipe.reset_weights()
            said.append(str(caught.value))

    pipe("a red heart", **WORDS, on_step=swap)
    changing[0].join(LONG)
    assert not changing[0].is_alive()
    assert "a call from within one image" in said[0]
    assert pipe._live.overrides("denoiser").keys() == halved.keys()


def test_threads_that_call_everything_raise_nothing_raw(pipe, halved):
    """And afterwards the picture is the first one's, to the bit."""
    base = pipe("a red heart", **WORDS).images
    prompts = (f"prompt {i}" for i in itertools.count())

    def own_loop():
        request = pipe.request(next(prompts), **WORDS)
        (*_, step) = pipe.denoise(request)
        pipe.finish(request, step.x)

    functions = (
        lambda: pipe("a red heart", **WORDS),
        own_loop,
        lambda: pipe.update_weights(halved),
        pipe.reset_weights,
        pipe.close,
        lambda: pipe.prepare(pipe.request("a dog", **WORDS)),
    )
    with Running(*functions).started() as running:
        running.until(2)
    assert [each for each in running.errors if not isinstance(each, EriError)] == []
    assert running.errors == []
    pipe.reset_weights()
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, base)
