"""16-bit exports: what is 16-bit, what stays float32, and how far from PyTorch they are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from eri_export import export, open_checkpoint
from eri_export.choices.precision import Policy, make_policy
from eri_export.gate.parity import compare
from eri_export.gate.report import TOLERANCES
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.text import t5_recipe
from eri_export.graphs.recipes.vae import decoder_recipe
from eri_export.plan.plan import spec_of
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import LatentSpec, ShapeRange
from eri_runtime.errors import BackendError, ParityError, UnknownNameError
from eri_runtime.executors.ort.session import OrtExecutor
from tests.support.components import STATIC, only, up_to, write_component

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CASES = [
    (family, precision) for family in ("sdxl", "sd35", "flux") for precision in ("fp16", "bf16")
]

ONLY = {
    ("sd35", "fp16"): {"denoiser", "text_encoder", "text_encoder_3"},
    ("sd35", "bf16"): {"denoiser", "text_encoder"},
    ("sdxl", "bf16"): {"denoiser", "text_encoder"},
    ("flux", "fp16"): {"denoiser", "text_encoder", "vae_encoder", "vae_decoder"},
}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request, tmp_path_factory):
    """A bundle, its precision and its family; components that another family has too are left out.

    sd35's VAE is flux's with a block, and flux's T5 is sd35's. In bf16, whose only rule is the
    type, each class of network is exported once, with a text encoder for every bundle. The sizes
    are fixed, which takes half the time.
    """
    family, precision = request.param
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    root = tmp_path_factory.mktemp(family) / precision
    with only(ONLY.get((family, precision))):
        export(checkpoint, root, precision=precision, ranges=STATIC)
    return manifest.read(root), family, precision


def test_weights_have_the_precision_of_their_component(exported):
    bundle, family, precision = exported
    for name, spec in bundle.components.items():
        t5 = {"sd35": "text_encoder_3", "flux": "text_encoder_2"}.get(family)
        upcast = name == t5 if precision == "bf16" else family == "sdxl" and name.startswith("vae")
        assert spec.precision == ("fp32" if upcast else precision), name
        for key, value in load_file(bundle.path(spec.weights)).items():
            kept = not set(spec.kept_float32).isdisjoint(key.split("."))
            assert value.dtype == (torch.float32 if kept else TORCH[spec.precision]), key


def test_clocks_and_t5s_residual_stream_stay_float32(exported):
    bundle, family, precision = exported
    clocks = {"sdxl": {"time_embedding", "add_embedding"}}.get(family, {"time_text_embed"})
    assert set(bundle.components["denoiser"].kept_float32) == clocks
    t5 = {"sd35": "text_encoder_3", "flux": "text_encoder_2"}.get(family)
    if t5 in bundle.components:
        assert bundle.components[t5].kept_float32 == (("wo",) if precision == "fp16" else ())
    stored = load_file(bundle.path(bundle.components["denoiser"].weights))
    kept = [key for key, value in stored.items() if value.dtype == torch.float32]
    assert kept
    assert {key.split(".")[0] for key in kept} <= clocks


def test_norms_take_their_statistics_in_float32(exported):
    bundle, _, _ = exported
    seen = 0
    for spec in bundle.components.values():
        model = onnx.load(bundle.path(spec.graph), load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model)
        types = {each.name: each.type.tensor_type.elem_type for each in model.graph.value_info}
        for node in model.graph.node:
            if node.op_type.endswith("Normalization"):
                (stash,) = (each.i for each in node.attribute if each.name == "stash_type")
                assert stash == onnx.TensorProto.FLOAT, node.name
                seen += 1
            if node.op_type == "ReduceMean":
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
                seen += 1
    assert seen > 10


def test_weights_are_the_checkpoints_rounded(exported, request):
    bundle, family, _ = exported
    checkpoint = open_checkpoint(request.getfixturevalue(f"{family}_checkpoint"))
    (file,) = {tensor.file for tensor in checkpoint.denoiser.tensors.values()}
    source = load_file(file)
    for key, value in load_file(bundle.path(bundle.components["denoiser"].weights)).items():
        assert torch.equal(value, source[key].to(value.dtype)), key


def test_graphs_are_valid_and_take_and_give_float32(exported):
    bundle, _, _ = exported
    for spec in bundle.components.values():
        onnx.checker.check_model(str(bundle.path(spec.graph)), full_check=True)
        graph = onnx.load(bundle.path(spec.graph), load_external_data=False).graph
        types = {each.type.tensor_type.elem_type for each in graph.output}
        assert types == {onnx.TensorProto.FLOAT}


def test_the_report_says_what_was_compared(exported):
    bundle, _, _ = exported
    metrics = json.loads(bundle.path("parity.json").read_text())["metrics"]
    subjects = {
        "fp32": {"graph"},
        "fp16": {"graph", "float32 twin"},
        "bf16": {"float32 twin"},
    }
    for name, spec in bundle.components.items():
        mine = [each for each in metrics if each["component"] == name]
        assert {each["subject"] for each in mine} == subjects[spec.precision]
        for each in mine:
            assert each["max_rel"] <= TOLERANCES[spec.precision, each["subject"]]


def test_float16_graphs_run_and_bfloat16_graphs_are_refused_by_the_cpu(exported):
    bundle, _, precision = exported
    spec = bundle.components["text_encoder"]
    if precision == "bf16":
        with pytest.raises(BackendError, match="bfloat16"):
            OrtExecutor(bundle.path(spec.graph), spec)
        return
    ids = np.full((spec.ranges["batch"].opt, 16), 634)
    ids[:, 0] = 633
    with OrtExecutor(bundle.path(spec.graph), spec) as executor:
        outputs = executor.run({"input_ids": ids})
    assert all(each.dtype == np.float32 and np.isfinite(each).all() for each in outputs.values())


def test_t5_does_not_overflow_float16(sd35_checkpoint, tmp_path, shared_trace):
    """As T5-XXL's, a residual stream beyond 65504 must go through a float16 export unharmed."""
    root = shutil.copytree(sd35_checkpoint, tmp_path / "checkpoint")
    file = root / "text_encoder_3" / "model.safetensors"
    tensors = load_file(file)
    tensors = {key: value * 3e4 if ".wo." in key else value for key, value in tensors.items()}
    save_file(tensors, file)
    source = open_checkpoint(root).components["text_encoder_3"]
    recipe = t5_recipe(source, "fp16", up_to(24, 24))
    graph = write_component(shared_trace(recipe), recipe, tmp_path / "part")
    assert compare(recipe, graph, spec_of(recipe), None).report
    wrapper = recipe.wrap(_loaded(recipe), torch.float32)
    peaks = []
    wrapper.network.encoder.block[1].register_forward_hook(
        lambda _, given, output: peaks.append(output[0].abs().max())
    )
    with torch.no_grad():
        wrapper(torch.zeros(1, 5, dtype=torch.int64))
    assert peaks[0] > 65504, "the test must reach what it is about"


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_vae_that_overflows_float16_is_refused_with_the_way_out(
    sd35_checkpoint, tmp_path, shared_trace, precision
):
    root = shutil.copytree(sd35_checkpoint, tmp_path / "checkpoint")
    file = root / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"] *= 1e5  # beyond 65504 before the first norm
    save_file(tensors, file)
    source = open_checkpoint(root).components["vae"]
    latents = LatentSpec(channels=16, factor=4, scale=1.0, shift=0.0, patch=2)
    side = ShapeRange(min=2, opt=8, max=16)
    recipe = decoder_recipe(source, precision, Frame(unit=2, height=side, width=side), latents)
    graph = write_component(shared_trace(recipe), recipe, tmp_path / "part")
    if precision == "fp32":
        assert compare(recipe, graph, spec_of(recipe), None).report
        return
    with pytest.raises(ParityError, match="`--precision fp16,vae_decoder=fp32`"):
        compare(recipe, graph, spec_of(recipe), None)


def _loaded(recipe):
    return T5EncoderModel.from_pretrained(recipe.source.origin).eval()


def test_a_policy_names_components_and_leaves_the_rest_to_what_overflows():
    fp16 = make_policy("fp16")
    assert fp16.of("sdxl", "denoiser") == "fp16"
    assert fp16.of("sdxl", "vae_decoder") == fp16.of("sdxl", "vae_encoder") == "fp32"
    assert fp16.of("flux", "vae_decoder") == "fp16"
    mixed = make_policy("bf16, vae=fp32, text_encoder_2=fp16, unet=fp16")
    named = {"vae_decoder": "fp32", "vae_encoder": "fp32"}
    assert mixed == Policy("bf16", {**named, "text_encoder_2": "fp16", "denoiser": "fp16"})
    assert make_policy({"*": "fp16", "vae": "fp16"}).of("sdxl", "vae_decoder") == "fp16"
    assert make_policy({"vae": "bf16"}).of("sdxl", "denoiser") == "fp32"


@pytest.mark.parametrize("given", ["fp8", "fp16,clip=fp32", "vae=", "", {"denoiser": "int8"}])
def test_an_unknown_precision_or_component_is_refused(given):
    with pytest.raises(UnknownNameError, match=r"fp32|denoiser"):
        make_policy(given)
