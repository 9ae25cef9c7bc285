"""A pipeline that is dropped without `close` gives its memory back at once, whatever it has done.

CPython frees what nothing refers to; a reference cycle waits for the garbage collector, which
counts objects and not the gigabytes behind them. So it is off here, and then finds nothing.
"""

from __future__ import annotations

import ast
import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import LoraError, NonFiniteError, OutOfMemoryError
from eri_runtime.executors.choice import Engine
from eri_runtime.weights import live_weights
from tests.support.loras import dotted, low_rank, modules

WORDS = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 0, "output_type": "np"}
ENGINES = ("eri_runtime.", "onnxruntime.", "openvino.", "numpy", "tokenizers")
OFFLOAD = eri.MemoryEfficientSamplingConfig(enable_cpu_offload=True, enable_vae_tiling=True)
STREAM = eri.MemoryEfficientSamplingConfig(enable_sequential_cpu_offload=True)


def call(pipe, **words):
    return pipe("a red heart", **WORDS, **words)


def stopped_half_way(pipe):
    for _ in pipe.denoise(pipe.request("a red heart", **WORDS)):
        break


def resumed(pipe):
    request = pipe.request("a red heart", **WORDS)
    step = next(pipe.denoise(request))
    pipe.finish(request, list(pipe.denoise(request, step))[-1].x)


def failed_in_a_hook(pipe):
    with pytest.raises(ZeroDivisionError):
        call(pipe, hook=lambda x: x / (1 // 0))


def failed_in_a_callback(pipe):
    with pytest.raises(ZeroDivisionError):
        call(pipe, on_step=lambda step: 1 // 0)


def failed_by_nan(pipe):
    with pytest.raises(NonFiniteError):
        call(pipe, hook=lambda x: x * np.float32("nan"))


def failed_by_memory(pipe):
    def full(x):
        raise MemoryError

    with pytest.raises(OutOfMemoryError):
        call(pipe, hook=full)


def refused(pipe):
    with pytest.raises(ValueError, match="height"):
        pipe.request("x", height=31)


def called_back(pipe):
    call(pipe, on_step=lambda step: pipe.bundle)


def previewed(pipe):
    request = pipe.request("a red heart", **WORDS)
    for step in pipe.denoise(request):
        pipe.preview(request, step)


def edited(pipe):
    image, mask = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)
    call(pipe, image=image, mask=mask, overlay=True)


def prepared(pipe):
    """The threads may still be opening components when the pipeline is dropped."""
    pipe.prepare(pipe.request("a red heart", **WORDS))


def used_by_threads(pipe):
    threads = [threading.Thread(target=call, args=(pipe,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def closed_and_used_again(pipe):
    call(pipe)
    pipe.close()
    call(pipe)


def swapped(pipe):
    shapes = modules(pipe._live.stored("denoiser"), "attn.to_q", "attn.to_v")
    lora = low_rank(shapes, dotted("transformer."))
    pipe.load_lora(lora, 0.5, name="style")
    call(pipe)
    pipe.set_loras({"style": 0.25})
    call(pipe)
    with pytest.raises(LoraError):
        pipe.load_lora({f"{name}.more": lora[name] for name in lora}, name="other")
    name = next(iter(pipe._live.stored("denoiser")))
    pipe.update_weights({name: np.array(pipe._live.stored("denoiser")[name])})


def is_ours(thing):
    return f"{type(thing).__module__}.".startswith(ENGINES)


@pytest.fixture
def dropped(monkeypatch):
    """Use a pipeline, drop it, and find nothing of it: not its components, and no garbage."""
    opened = []
    component, step = Engine.__call__, Engine.stepper

    def noted(thing):
        if thing is not None:
            opened.append(weakref.ref(thing))
        return thing

    monkeypatch.setattr(Engine, "__call__", lambda *given: noted(component(*given)))
    monkeypatch.setattr(Engine, "stepper", lambda *given: noted(step(*given)))

    def drop(use, *arguments, **options):
        gc.collect()
        gc.disable()
        try:
            pipe = eri.load(*arguments, **options)
            use(pipe)
            parts = [weakref.ref(pipe), weakref.ref(pipe._live), weakref.ref(pipe._runner)]
            del pipe
            for thread in threading.enumerate():
                if thread.name.startswith("eri-open"):
                    thread.join()
            left = [each() for each in (*parts, *opened) if each() is not None]
            assert left == []
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            assert [each for each in gc.garbage if is_ours(each)] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        return len(opened)

    return drop


USES = [
    call,
    stopped_half_way,
    resumed,
    failed_in_a_hook,
    failed_in_a_callback,
    failed_by_nan,
    failed_by_memory,
    refused,
    called_back,
    previewed,
    edited,
    prepared,
    used_by_threads,
    closed_and_used_again,
    swapped,
]


OPENVINO = [call, stopped_half_way, failed_in_a_hook, prepared, swapped]  # its own executors
RUNS = [("cpu", use) for use in USES] + [("openvino", use) for use in OPENVINO]


@pytest.mark.parametrize(("backend", "use"), RUNS)
def test_a_dropped_pipeline_leaves_nothing(dropped, sd35_bundle, backend, use):
    count = dropped(use, sd35_bundle, backend)
    assert count > 0 or use is refused


@pytest.mark.parametrize("use", [stopped_half_way, failed_in_a_hook, swapped])
@pytest.mark.parametrize("memory", [OFFLOAD, STREAM], ids=["offload", "stream"])
def test_a_memory_mode_leaves_nothing(dropped, sd35_bundle, memory, use):
    assert dropped(use, sd35_bundle, "cpu", memory=memory) > 0


def test_a_cycle_is_found(dropped, sd35_bundle):
    def tied(pipe):
        pipe._live.itself = pipe._live

    with pytest.raises(AssertionError, match="LiveWeights"):
        dropped(tied, sd35_bundle, "cpu")


def raised_variables(tree):
    """The `raise NAME` of local variables that are not deleted in a `finally` around them.

    An exception refers to its traceback, that to the frame, and the frame to its variables: one of
    them that is the exception closes a cycle, which keeps every caller's variables alive.
    """
    deleted = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        and any(isinstance(last, ast.Delete) for last in attempt.finalbody)
        for each in attempt.body
        for node in ast.walk(each)
    }
    for node in ast.walk(tree):
        raised = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(raised, ast.Name) and raised.id.islower() and id(node) not in deleted:
            yield raised.id


def test_no_exception_is_a_variable_of_the_frame_that_raises_it():
    assert list(raised_variables(ast.parse("def f(error):\n    raise error"))) == ["error"]
    package = Path(live_weights.__file__).parents[1]
    found = {
        str(path.relative_to(package)): names
        for path in package.rglob("*.py")
        if (names := list(raised_variables(ast.parse(path.read_text()))))
    }
    assert found == {}
