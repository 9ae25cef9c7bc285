"""The pipeline's model, run as Triton's Python backend runs it, over a stand-in of the backend."""

from __future__ import annotations

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.triton import export_repository
from eri_runtime.triton.drawing import is_due
from tests.support.triton_backend import DTYPES, Request, served, text

SMALL = {
    "steps": np.array([4], np.int32),
    "height": np.array([32], np.int32),
    "width": np.array([48], np.int32),
    "guidance_scale": np.array([4.2]),
}
SEED = {"seed": np.array([7], np.uint64)}
WORDS = {"num_inference_steps": 4, "height": 32, "width": 48, "guidance_scale": 4.2}


@pytest.fixture(scope="module")
def model(sd35_bundle, tmp_path_factory):
    """The model, with one response a request."""
    folder = export_repository(sd35_bundle, tmp_path_factory.mktemp("plain") / "repository")
    with served(folder) as model:
        yield model


@pytest.fixture(scope="module")
def streaming(sd35_bundle, tmp_path_factory):
    """The model, with previews."""
    folder = tmp_path_factory.mktemp("streaming") / "repository"
    with served(export_repository(sd35_bundle, folder, previews=True, backend="cpu")) as model:
        yield model


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    """The bundle itself."""
    with eri.load(sd35_bundle) as pipe:
        yield pipe


def check_types(response, config):
    """The outputs have the names, dtypes and sizes of the configuration."""
    assert response.tensors.keys() == {output.name for output in config.output}
    types = config.output[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    for output in config.output:
        array = response.tensors[output.name]
        assert array.dtype == DTYPES[types[output.data_type].name]
        assert len(array.shape) == len(output.dims)
        for size, dim in zip(array.shape, output.dims, strict=True):
            assert dim in (-1, size)


def test_pictures_are_those_of_the_pipeline(model, pipe):
    prompts = text("a red heart", "a pïzza")
    request = Request(prompt=prompts, negative_prompt=text("blurry"), **SMALL, **SEED)
    (response,) = model.execute([request])
    expected = pipe(["a red heart", "a pïzza"], negative_prompt="blurry", seed=7, **WORDS)
    assert response.error is None
    check_types(response, model.config)
    for image, found in zip(expected.images, response.tensors["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(image), found)
    assert tuple(response.tensors["seeds"].tolist()) == expected.seeds
    found = tuple(each.decode() for each in response.tensors["parameters"])
    named = [each.partition(", Model: ")[0] for each in expected.parameters]  # its folder's name
    assert [each.partition(", Model: ")[0] for each in found] == named


def test_every_input_is_optional_but_a_text_is_needed(model):
    request = Request(prompt=text("x"), **{"steps": SMALL["steps"]})
    assert all(each.optional for each in model.config.input)
    nothing, something = model.execute([Request(), request])
    assert nothing.error.code == "INVALID_ARG"
    assert "prompt" in nothing.error.message()
    assert something.error is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"height": np.array([33], np.int32)}, "height: got 33"),
        ({"steps": np.array([0], np.int32)}, "num_inference_steps: got 0"),
        ({"steps": np.array([1, 2], np.int32)}, "steps: got 2 values, expected one value"),
        ({"steps": np.array([], np.int32)}, "steps: got 0 values, expected one value"),
        ({"guidance_scale": np.array([np.nan])}, "guidance_scale: got nan"),
        ({"sampler": text("eulr")}, "sampler: got 'eulr'"),
        ({"prompt": text(b"\xff")}, "prompt: got b'\\\\xff', expected text in UTF-8"),
    ],
)
def test_an_error_answers_its_own_request_only(model, inputs, message):
    bad = Request(**{"prompt": text("x"), **SMALL, **inputs})
    good = Request(prompt=text("x"), **SMALL)
    refused, made = model.execute([bad, good])
    assert refused.error.code == "INVALID_ARG"
    assert message.replace("\\\\", "\\") in refused.error.message()
    assert made.error is None


def test_a_failure_of_any_kind_is_an_answer(model, monkeypatch):
    def fail(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("eri_runtime.pipeline.Pipeline.finish", fail)
    (response,) = model.execute([Request(prompt=text("x"), **SMALL)])
    assert response.error.code == "INTERNAL"
    assert response.error.message() == "RuntimeError: the device is gone"


def test_a_cancelled_request_ends_at_its_next_step(model, monkeypatch):
    decoded = []
    monkeypatch.setattr("eri_runtime.pipeline.Pipeline.finish", lambda *_: decoded.append(1))
    request = Request(lives=2, prompt=text("x"), **SMALL)
    (response,) = model.execute([request])
    assert response.error.code == "CANCELLED"
    assert request.lives == -1  # asked before the loop, after its first step and after its second
    assert not decoded


def test_previews_come_before_the_picture(streaming, model):
    assert streaming.config.model_transaction_policy.decoupled
    request = Request(prompt=text("x"), previews=np.array([2], np.int32), **SMALL, **SEED)
    assert streaming.execute([request]) is None
    assert request.finished
    for response in request.sent:
        check_types(response, streaming.config)
    steps = [response.tensors["step"].item() for response in request.sent]
    assert steps == [2, 3, 4]
    assert [response.tensors["total"].item() for response in request.sent] == [4, 4, 4]
    (alone,) = model.execute([Request(prompt=text("x"), **SMALL, **SEED)])
    np.testing.assert_array_equal(request.sent[-1].tensors["image"], alone.tensors["image"])
    assert request.sent[-1].tensors["parameters"][0]
    assert request.sent[0].tensors["parameters"].tolist() == [b""]


@pytest.mark.parametrize("lives", [0, 1, 2, 1000])
def test_every_stream_is_ended(streaming, lives):
    """Also that of a client that has gone, and beside it that of one that has not."""
    gone = Request(lives=lives, prompt=text("x"), **SMALL)
    other = Request(prompt=text("y"), **SMALL)
    streaming.execute([gone, other])
    assert gone.finished
    assert other.finished
    error = gone.sent[-1].error
    assert error is None if lives == 1000 else error.code == "CANCELLED"
    assert other.sent[-1].error is None


@pytest.mark.parametrize("previews", [[-1], [1, 2]])
def test_a_bad_number_of_previews_is_refused(streaming, previews):
    request = Request(prompt=text("x"), previews=np.array(previews, np.int32), **SMALL)
    streaming.execute([request])
    (response,) = request.sent
    assert response.error.code == "INVALID_ARG"
    assert "expected one integer, 0 or more" in response.error.message()


@pytest.mark.parametrize(("total", "previews"), [(1, 3), (4, 2), (20, 3), (28, 0), (5, 100)])
def test_previews_are_evenly_spaced(total, previews):
    due = [step for step in range(1, total + 1) if is_due(step, total, previews)]
    assert len(due) == min(previews, total - 1)
    assert total not in due
    gaps = np.diff([0, *due, total])
    assert gaps.max() - gaps.min() <= 1
