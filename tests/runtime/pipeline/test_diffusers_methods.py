"""diffusers' methods on a pipeline: done where that is easy and true, else explained."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.errors import NotABundleError, UnknownAttributeError, UnknownNameError, UsageError
from eri_runtime.pipeline.diffusers_advice import ADVICE, MODULES
from tests.support.loras import base_weights, dotted, low_rank, modules

SMALL = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 0}


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with eri.Pipeline.from_pretrained(
        sd35_bundle, backend="cpu", use_safetensors=True, torch_dtype=None
    ) as pipe:
        yield pipe


def test_from_pretrained_says_what_a_bundle_cannot(sd35_bundle, tmp_path):
    for name, value, fix in (
        ("torch_dtype", torch.float16, "--precision"),
        ("variant", "fp16", "eri export"),
        ("scheduler", object(), "sampler="),
        ("use_safetensors", False, "exported"),
    ):
        with pytest.raises(UsageError, match=rf"^{name}: got .*{fix}"):
            eri.Pipeline.from_pretrained(sd35_bundle, **{name: value})
    with pytest.raises(UnknownNameError, match="did you mean `backend`"):
        eri.Pipeline.from_pretrained(sd35_bundle, backendd="cpu")
    with pytest.raises(NotABundleError):
        eri.Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("target", ["cpu", torch.device("cpu"), torch.float32, "float32", None])
def test_to_where_it_is_already_is_the_pipeline(pipe, target):
    assert pipe.to(target) is pipe
    assert pipe.to(device="cpu", dtype=torch.float32, silence_dtype_warnings=True) is pipe
    assert pipe.device == "cpu"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cuda", r'load\(…, backend="cuda"\)'),
        ("cuda:0", "backend="),
        (torch.device("cuda", 1), "backend="),
        (torch.float16, "--precision"),
        ("mps", "cpu, cuda, or a dtype"),
        (3, "a device or a dtype"),
    ],
)
def test_to_elsewhere_says_what_to_do(pipe, target, says):
    with pytest.raises(UsageError, match=f"^to: got .*{says}"):
        pipe.to(target)


@pytest.mark.parametrize("name", ADVICE)
def test_a_name_of_diffusers_says_what_to_do(pipe, name):
    assert not hasattr(pipe, name)
    with pytest.raises(UnknownAttributeError, match=rf"^pipe\.{name}: got a name of diffusers, ex"):
        getattr(pipe, name)


def test_another_name_gets_the_nearest(pipe):
    with pytest.raises(AttributeError, match="did you mean `load_lora`"):
        pipe.load_loras  # noqa: B018 the access is the test
    with pytest.raises(UnknownAttributeError, match=r"no such name.*Pipeline$"):
        pipe.qqqqqq  # noqa: B018
    error = pickle.loads(pickle.dumps(UnknownAttributeError("a", got="b", expected="c")))  # noqa: S301
    assert str(error) == "a: got b, expected c"
    assert not hasattr(pipe, "__deepcopy__")
    assert copy.copy(error).offender == "a"


@pytest.mark.parametrize("name", MODULES)
def test_setting_a_module_is_no_silent_nothing(pipe, name):
    with pytest.raises(UsageError, match=rf"^pipe\.{name}: "):
        setattr(pipe, name, object())
    pipe.safety_checker = None  # what it is anyway


def test_progress_bars_are_off_already(pipe):
    assert pipe.set_progress_bar_config(disable=True) is None
    with pytest.raises(UsageError, match="on_step="):
        pipe.set_progress_bar_config(leave=False)
    assert pipe.maybe_free_model_hooks() is None


def test_loras_by_diffusers_names_are_eris(pipe, sd35_checkpoint, tmp_path):
    shapes = modules(base_weights(sd35_checkpoint)["denoiser"], "attn.to_q")
    file = tmp_path / "style.safetensors"
    save_file(low_rank(shapes, dotted("transformer.")), file)
    plain = pipe("a", output_type="latent", **SMALL).latents
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="one")
    merged = pipe("a", output_type="latent", **SMALL).latents
    assert pipe.get_active_adapters() == ["one"]
    assert np.abs(merged - plain).max() > 1e-3
    with pytest.raises(UsageError, match=r'kwargs\["scale"\]: got 0.5 with LoRAs that are merged'):
        pipe.request("a", joint_attention_kwargs={"scale": 0.5})
    assert pipe.request("a", joint_attention_kwargs={"scale": 1.0}).lora_scale == 1
    pipe.set_adapters(["one"], [0.5])
    assert dict(pipe.loras) == {"one": 0.5}
    pipe.set_adapters("one")
    assert dict(pipe.loras) == {"one": 1.0}
    with pytest.raises(UsageError, match="adapter_weights: got 2 scales"):
        pipe.set_adapters(["one"], [1, 2])
    pipe.disable_lora()
    np.testing.assert_array_equal(pipe("a", output_type="latent", **SMALL).latents, plain)
    pipe.delete_adapters("one")
    pipe.unload_lora_weights()
    with pytest.raises(UnknownNameError):
        pipe.set_adapters("one")


def test_a_result_is_diffusers_tuple(pipe):
    result = pipe("a", return_dict=False, **SMALL)
    (images,) = result
    assert images is result.images is result[0] is result["images"]
    assert len(result) == 1
    with pytest.raises(IndexError):
        result[1]
    with pytest.raises(KeyError):
        result["x"]
    with pytest.raises(UsageError, match="return_dict"):
        pipe.request("a", return_dict="no")
