"""Every argument of every public function gets wrong types and extreme values.

The answer is a typed error with a short message, or success: never another exception. Arguments
are found by `inspect`, so that a new one is tested by itself; a new function needs a valid call
here first.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import eri_runtime as eri
from eri_runtime.errors import EriError
from eri_runtime.request.keywords import Words
from eri_runtime.sampling import make_table

LONGEST = 4500  # characters of a message: three parts of at most 1200, and words between them
SECONDS = 20
SMALL = {"num_inference_steps": 1, "height": 16, "width": 16, "seed": 0}
# they only hold what they are given, or are subclassed by a caller
RECORDS = {
    "Bundle", "ComponentSpec", "EriError", "NoiseSource", "Point", "Result", "Sampler",
    "SamplerTable", "Schedule", "ShapeRange", "Step", "TensorSpec", "Pipeline",
}  # fmt: skip
RECORDS |= {name for name in eri.__all__ if name in vars(eri.errors)}
OWNERS = ("DDPMScheduler", "Pipeline", "Result")  # classes whose methods are called too
NO_ARGUMENTS = {"Pipeline.close"}
# errors of Python's own that a docstring promises
DOCUMENTED = {"Result.save": FileExistsError}


def nested(depth=3000):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def device(folder: Path) -> str:
    """A link to a device, as a function that writes there as root would replace the device."""
    path = folder / "device"
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/zero")
    return str(path)


def pipe_file(folder: Path) -> str:
    path = folder / "fifo"
    if not path.exists():
        os.mkfifo(path)
    return str(path)


class Loud:
    """Cannot even be printed."""

    def __repr__(self):
        raise RuntimeError("no text")


def hostile(folder: Path) -> list:
    """Values of every kind that some argument does not take."""
    return [
        True, False, -1, 0, 1, 3, 2**31, 2**64, 10**400, 10**5000, -0.5, 0.5, 1e308, nan, inf, -inf,
        1e-320, 1 + 2j, Fraction(1, 3), Decimal("NaN"), "", "x", "\0", "\ud800", "x" * 100_000,
        "../" * 2000, device(folder), pipe_file(folder), str(folder), b"", b"x" * 5000, (), [], {},
        [None], [[], [1]], [nan], [10**400], ["x"], {"x": "x"}, {1: 2}, {"x": nan}, {"x": 10**400},
        {"\ud800"}, nested(), (1, 2), (2, 1), (nan, nan), ("x", 1.0), range(3), iter([1]), object(),
        Loud(), lambda *_: None, lambda *_: np.full(3, nan), timedelta(1), Path("nowhere"),
        folder / "fifo", np.float32(nan), np.int64(-1), np.array(5), np.zeros(0),
        np.zeros((0, 3, 0)), np.zeros((2, 2, 3)), np.full((1, 4, 8, 8), nan), np.array(["x"]),
        np.array([None, {}]), np.zeros(3, complex), np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "f4")]), np.array([2**63], np.uint64),
        Image.new("RGB", (1, 1)), Image.new("CMYK", (16, 16)), Image.new("I", (16, 16)),
        Image.new("PA", (16, 16)), Image.new("LAB", (16, 16)), Image.new("RGB", (0, 5)),
    ]  # fmt: skip


def valid_calls(pipe: eri.Pipeline, folder: Path) -> dict[str, tuple[Callable, dict]]:
    """A call of every public function and method that succeeds."""
    spec = pipe.bundle.schedule
    x = np.zeros((1, 4, 8, 8), np.float32)
    scheduler = eri.DDPMScheduler()
    scheduler.set_timesteps(2)
    schedule = eri.SAMPLERS["euler"].schedule(spec, 2, 0)
    table = make_table(eri.SAMPLERS["euler"], schedule, spec)
    request = pipe.request("a cat", **SMALL)
    step = next(iter(pipe.denoise(request)))
    result = pipe("a cat", **SMALL)
    rgb = np.zeros((3, 8, 8), np.float32)
    config = eri.SamplingConfig(1, 4.0, height=16, width=16, seed=0, output_dir=folder)
    base = {"down_blocks.0.resnets.0.conv1.weight": np.zeros((32, 32, 3, 3), np.float32)}
    lora = {
        "unet.down_blocks.0.resnets.0.conv1.lora_A.weight": np.zeros((1, 32, 3, 3), np.float32),
        "unet.down_blocks.0.resnets.0.conv1.lora_B.weight": np.zeros((32, 1, 1, 1), np.float32),
    }
    network = lambda x, point: x  # noqa: E731
    cond = pipe.encode_prompt("a cat")
    image = folder / "image.png"
    calls = {
        "Job": {"prompt": "a cat"},
        "AncestralSamplerConfig": {"eta": 1.0, "s_churn": 0},
        "BrownianNoise": {"seeds": [0], "intervals": [(0.0, 1.0)], "span": (0.0, 1.0), "first": 1},
        "DDPMScheduler": {},
        "DDPMScheduler.add_noise": {"original_samples": x, "noise": x, "timesteps": [5]},
        "DDPMScheduler.set_timesteps": {"num_inference_steps": 2},
        "DDPMScheduler.step": {"model_output": x, "timestep": 1, "sample": x, "generator": None},
        "GuidanceConfig": {"guidance_scale": 4.0},
        "MemoryEfficientSamplingConfig": {},
        "PhiloxNoise": {"seeds": [0]},
        "TorchNoise": {"seeds": [0]},
        "TorchNormal": {"seed": 0},
        "SamplingConfig": {
            "num_inference_steps": 1, "guidance_scale": 4.0, "height": 16, "width": 16,
        },
        "apply_lora_for_inference": {"base_weights": base, "lora_weights": lora},
        "batch_sample": {"prompts": ["a cat"], "config": config, "batch_size": 1, "pipe": pipe},
        "denoise": {"network": network, "table": table, "start": x, "noise": eri.TorchNoise([0])},
        "dynamic_thresholding": {"sample": x, "threshold": 1.0, "percentile": 0.9},
        "generate_validation_samples": {
            "pipe": pipe, "prompts": "a cat", "config": config, "step": 0,
        },
        "tabulate": {
            "algorithm": eri.SAMPLERS["euler"].algorithm, "schedule": schedule,
            "prediction": "eps",
        },
        "forward_sdxl_sampling": {
            "pipe": pipe, "latent": x, "text_embeddings": cond.embeds,
            "pooled_embeddings": cond.pooled, "timestep": 5, "added_cond_kwargs": None,
        },
        "get_flux_schedule": {"num_steps": 2, "shift": 1.0},
        "get_linear_schedule": {"num_steps": 2},
        "load": {"bundle": pipe.bundle.root},
        "make_schedule": {"spec": spec, "steps": 2, "tokens": 0, "whole_t": True},
        "make_table": {"sampler": eri.SAMPLERS["euler"], "schedule": schedule, "spec": spec},
        "read_bundle": {"root": pipe.bundle.root},
        "save_image": {
            "image_tensor": rgb, "output_dir": folder, "model_name": "m", "step": 0, "idx": 0,
            "prompt": "p",
        },
        "save_tensor_as_image": {"tensor": rgb, "path": image},
        "Pipeline.request": {"prompt": "a cat", **SMALL},
        "Pipeline.__call__": {"prompt": "a cat", **SMALL},
        "Pipeline.prepare": {"request": request},
        "Pipeline.denoise": {"request": request, "start": step},
        "Pipeline.begin": {"request": request},
        "Pipeline.step": {"generations": [pipe.begin(request)]},
        "Pipeline.schedule": {"request": request},
        "Pipeline.table": {"request": request},
        "Pipeline.finish": {"request": request, "x": step.x},
        "Pipeline.preview": {"request": request, "step": step},
        "Pipeline.prompt_windows": {"request": request},
        "Pipeline.encode_prompt": {"prompt": "a cat", "max_sequence_length": 16},
        "Pipeline.decode": {"latents": x, "height": 16, "width": 16},
        "Pipeline.run": {"name": "vae_decoder", "inputs": {"latents": x}},
        "Pipeline.update_weights": {"tensors": {}, "component": "denoiser"},
        "Pipeline.reset_weights": {"component": None},
        "Pipeline.load_lora": {"source": lora, "name": "own", "scale": 1.0},
        "Pipeline.set_loras": {"scales": {}},
        "Pipeline.unload_loras": {},
        "Pipeline.load_textual_inversion": {
            "source": {"emb_params": np.zeros((1, 32), np.float32)}, "token": "<new>",
        },
        "Pipeline.unload_textual_inversions": {},
        "Pipeline.swaps": {"component": "denoiser"},
        "Result.save": {"path": image},
    }  # fmt: skip
    owners = {"DDPMScheduler": scheduler, "Pipeline": pipe, "Result": result}

    def find(name: str) -> Callable:
        owner, dot, method = name.partition(".")
        return getattr(owners[owner], method) if dot else getattr(eri, name)

    return {name: (find(name), words) for name, words in calls.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def calls(sdxl_bundle, folder) -> Iterator[dict[str, tuple[Callable, dict]]]:
    with eri.load(sdxl_bundle, "cpu", threads=1) as pipe:
        yield valid_calls(pipe, folder)


@pytest.fixture(autouse=True)
def _in_a_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)  # a hostile output path must not reach the project


def arguments(name: str, call: Callable) -> list[str]:
    """The arguments of a function, with the keywords of a call where it takes any."""
    names = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind == parameter.VAR_KEYWORD:
            names += Words.__annotations__
        else:
            star = "*" if parameter.kind == parameter.VAR_POSITIONAL else ""
            names.append(star + parameter.name)
    return names


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def failure(call: Callable, words: dict, argument: str, name: str) -> str | None:
    """What a call did that it must not do; None if it succeeded or gave a typed error."""
    words = dict(words)
    try:
        with time_limit(SECONDS):
            extra = []
            if argument.startswith("*"):  # what is named before it comes first, by position
                before = list(inspect.signature(call).parameters)
                names = before[: before.index(argument[1:])]
                extra = [*(words.pop(name) for name in names if name in words), words.pop(argument)]
            result = call(*extra, **words)
            if inspect.isgenerator(result):
                list(islice(result, 2))
    except EriError as error:
        return f"a message of {len(str(error))} characters" if len(str(error)) > LONGEST else None
    except Exception as error:
        return None if isinstance(error, DOCUMENTED.get(name, ())) else f"{type(error)} {error}"
    return None


def public_names() -> set[str]:
    """Every public function, class, and method of the classes that do something."""
    names = {name for name in eri.__all__ if callable(getattr(eri, name))} - RECORDS
    for owner in OWNERS:
        kind = getattr(eri, owner)
        methods = {name for name in vars(kind) if not name.startswith("_")} | {"__call__"}
        names |= {
            f"{owner}.{name}"
            for name in methods & vars(kind).keys()
            if inspect.isfunction(vars(kind)[name])
        }
    return names - NO_ARGUMENTS


def test_every_public_function_has_a_valid_call(calls):
    assert public_names() == calls.keys()
    for call, words in calls.values():
        call(**words)


@pytest.mark.parametrize("name", sorted(public_names()))
def test_hostile_arguments_get_a_typed_error(calls, folder, name):
    call, words = calls[name]
    failures = [
        (argument, failed)
        for argument in arguments(name, call)
        for value in hostile(folder)
        if (failed := failure(call, {**words, argument: value}, argument, name))
    ]
    assert not failures


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.complex_numbers() | st.fractions(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
IN_MEMORY = ("Pipeline.request", "SamplingConfig", "make_schedule", "Pipeline.encode_prompt")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_arguments_get_a_typed_error(calls, data):
    name = data.draw(st.sampled_from(IN_MEMORY))
    call, words = calls[name]
    argument = data.draw(st.sampled_from(arguments(name, call)))
    value = data.draw(ANYTHING)
    assert failure(call, {**words, argument: value}, argument, name) is None
