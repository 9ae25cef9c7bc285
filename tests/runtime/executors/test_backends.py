"""Which engine runs a bundle: the order, the reasons, and what is never done silently."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.commands.describe_bundle import describe_bundle
from eri_runtime.commands.main import main
from eri_runtime.errors import BackendError, NonFiniteError, UnknownNameError
from eri_runtime.executors import choice
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import Executor
from eri_runtime.executors.choice import AUTO, BACKENDS, choose, reasons_against_auto, refusals
from eri_runtime.executors.openvino.backend import OPENVINO
from eri_runtime.executors.ort.backend import CPU
from eri_runtime.install_hint import install_hint


class Unavailable(Backend):
    """A backend that runs nothing, and says why."""

    def __init__(self, reason):
        self.reason = reason

    def refusal(self, spec):
        return self.reason

    words = executor = stepper = None


WORDS = {"height": 32, "width": 32, "num_inference_steps": 5, "seed": 0}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """What `auto` takes is the same on every machine."""
    for name in ("tensorrt", "cuda"):
        monkeypatch.setitem(BACKENDS, name, Unavailable("no NVIDIA GPU"))


@pytest.fixture
def bundle(sd35_bundle):
    """Exported where nothing but ONNX Runtime was installed."""
    return eri.read_bundle(sd35_bundle)


@pytest.fixture
def installed(monkeypatch):
    """Makes these packages importable, by what `find_spec` says, and the other engines not."""
    find = importlib.util.find_spec

    def only(*names):
        hidden = {"onnxruntime", "openvino"} - set(names)
        found = lambda name, *rest: None if name in hidden else find(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", found)

    return only


def changed(bundle, **fields):
    """The bundle with these fields in every component."""
    components = {
        name: dataclasses.replace(spec, **fields) for name, spec in bundle.components.items()
    }
    return dataclasses.replace(bundle, components=components)


def compared(bundle):
    """The bundle as it would be from where OpenVINO was installed."""
    return changed(bundle, compared={"openvino": 1e-6})


def test_the_order_is_the_one_that_is_documented():
    assert AUTO == ("tensorrt", "cuda", "openvino", "cpu")
    assert [name for name in BACKENDS if name in AUTO] == list(AUTO)


def test_auto_takes_what_was_compared_at_export(bundle):
    assert choose(bundle).backend is CPU
    assert choose(compared(bundle)).backend == OPENVINO


def test_one_component_that_was_not_compared_is_enough_to_leave_an_engine_out(bundle):
    almost = compared(bundle)
    parts = {**almost.components, "vae_encoder": bundle.components["vae_encoder"]}
    almost = dataclasses.replace(almost, components=parts)
    assert choose(almost).backend is CPU
    (reason,) = reasons_against_auto(almost, "openvino")
    assert reason.startswith("vae_encoder: not compared with PyTorch at export")


def test_auto_takes_the_first_that_can(bundle, monkeypatch):
    monkeypatch.setitem(BACKENDS, "cuda", CPU)
    assert choose(compared(bundle)).backend is CPU
    assert choose(compared(bundle), "openvino").backend == OPENVINO


def test_every_refusal_is_one_line(bundle, caplog):
    with caplog.at_level(logging.INFO, "eri_runtime.executors.choice"):
        choose(bundle)
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in said[:-1]] == [f"backend {n}" for n in AUTO[:-1]]
    assert said[-1] == "backend cpu is used"
    assert said[:2] == [f"backend {name}: no NVIDIA GPU" for name in ("tensorrt", "cuda")]
    assert "`--backend openvino` runs it all the same" in said[2]
    assert not any("\n" in line for line in said)


def test_a_missing_package_is_named_with_its_extra(bundle, installed):
    installed()
    assert refusals(bundle, "openvino") == [
        f"openvino is not installed: {install_hint('openvino')}"
    ]
    with pytest.raises(BackendError, match=r"pip install .*\[cpu\].*eri inspect") as refused:
        choose(bundle)
    assert all(f"{name}: " in str(refused.value) for name in AUTO)


def test_a_package_that_is_missing_is_none_that_auto_takes(bundle, installed):
    installed("onnxruntime")
    assert choose(compared(bundle)).backend is CPU
    installed("openvino")
    assert choose(compared(bundle)).backend == OPENVINO


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "cpu"])
def test_a_named_backend_is_never_another(name, bundle, monkeypatch):
    monkeypatch.setitem(BACKENDS, name, Unavailable("it is not here"))
    with pytest.raises(BackendError, match=f"^backend {name}: got it is not here, expected"):
        choose(compared(bundle), name)


def test_the_command_line_refuses_in_one_line(sd35_bundle, tmp_path, capsys):
    target = tmp_path / "x.png"
    words = ["generate", str(sd35_bundle), "x", "--backend", "tensorrt", "-o", str(target)]
    assert main(words) == 1
    opening, error = capsys.readouterr().err.splitlines(keepends=True)
    assert opening == f"eri: opening {sd35_bundle}\n"
    assert error.startswith("eri: backend tensorrt: got no NVIDIA GPU, expected ")
    assert error.count("\n") == 1
    assert not target.exists()


def test_a_refusal_names_its_components_unless_it_is_of_all(bundle):
    denoiser = dataclasses.replace(bundle.components["denoiser"], precision="bf16")
    some = dataclasses.replace(bundle, components={**bundle.components, "denoiser": denoiser})
    assert refusals(some, "cpu")[0].startswith("denoiser: ONNX Runtime's CPU kernels")
    assert refusals(changed(bundle, precision="bf16"), "cpu")[0].startswith("ONNX Runtime's CPU")


def test_bfloat16_bundles_run_where_only_openvino_can(bundle):
    sixteen = changed(bundle, precision="bf16")
    assert choose(sixteen, "openvino").backend == OPENVINO
    with pytest.raises(BackendError, match="--precision fp32"):
        choose(sixteen)
    assert choose(compared(sixteen)).backend == OPENVINO


def test_rounding_is_never_chosen_for_the_user(bundle):
    assert "openvino:bf16" not in AUTO
    assert reasons_against_auto(bundle, "openvino:bf16") == ["rounds more than the bundle does"]


@pytest.mark.parametrize(
    "name", ["", "OpenVINO", "openvino:f16", "gpu", "auto:bf16", "cuda:nonsense"]
)
def test_an_unknown_backend_is_named(name, bundle):
    with pytest.raises(UnknownNameError, match="expected auto or one of tensorrt, cuda, cuda:tf32"):
        choose(bundle, name)


def test_inspect_says_of_every_backend_whether_it_can(bundle):
    lines = [line for line in describe_bundle(compared(bundle)) if line.startswith("backend ")]
    assert [line.split(": ")[0] for line in lines] == [f"backend {name}" for name in BACKENDS]
    said = dict(zip(BACKENDS, lines, strict=True))
    assert "no; no NVIDIA GPU" in said["tensorrt"]
    assert "can run it here; OpenVINO" in said["openvino"]
    assert "float32" in said["openvino"]
    assert "can run it here; CPUExecutionProvider" in said["cpu"]
    assert any(line.endswith(", on openvino 1.0e-06") for line in describe_bundle(compared(bundle)))
    assert "(not by auto: not compared" in "\n".join(choice.describe_backends(bundle))


# NaN and Inf


class Spoiled(Executor):
    """An executor whose `spoil`-th run and all after it give a NaN."""

    def __init__(self, inner, spoil):
        self.inner, self.spec, self.left = inner, inner.spec, spoil

    def run(self, inputs):
        self.left -= 1
        outputs = self.inner.run(inputs)
        if self.left <= 0:
            first = next(iter(outputs.values()))
            first[..., -1] = np.nan
        return outputs

    def close(self):
        self.inner.close()


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize(
    ("component", "run", "named"),
    [
        ("denoiser", 3, "latents after step 3 of 5: got NaN or Inf in "),
        ("vae_decoder", 1, "image"),
        ("text_encoder", 1, "prompt embeddings"),
    ],
)
def test_nan_is_an_error_that_names_its_place(backend, component, run, named, bundle):
    engine = choose(bundle, backend)

    def opened(name, overrides):
        executor = engine(name, overrides)
        return Spoiled(executor, run) if name == component else executor

    with (
        eri.Pipeline(bundle, opened, loop="numpy") as pipe,
        pytest.raises(NonFiniteError, match=named),
    ):
        pipe("a red heart", **WORDS, guidance_scale=1.0)
