"""A single file is its folder: the same names, the same bytes, the same bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping

import diffusers.loaders.single_file_utils as oracle
import onnx
import pytest
import torch
from safetensors.torch import load_file

from eri_export import export, open_checkpoint
from eri_export.checkpoints.config_from_shapes.text import Identity
from eri_export.checkpoints.shipped_configs import configs
from eri_export.checkpoints.sources.detect_networks import detect_networks
from tests.support import single_files as made
from tests.support.checkpoints import all_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


def sdxl_published(root, shop):
    return {"path": made.written(shop / "a.safetensors", made.published_sdxl(root))}


def sdxl_denoiser(root, shop):
    """A UNet in its own names, and the rest from a pipeline's folder."""
    unet = made.ldm_unet(made.weights(root / "unet"))
    return {
        "path": made.written(shop / "a.safetensors", unet),
        "vae": root,
        "text_encoders": [root],
    }


def sd35_complete(root, shop):
    return {"path": made.written(shop / "a.safetensors", made.sd3_with_encoders(root))}


def sd35_with_files(root, shop):
    """A transformer in diffusers' names, a VAE of another checkpoint, encoders as HF saves them."""
    return {
        "path": root / "transformer" / WEIGHTS,
        "vae": made.written(shop / "b.safetensors", made.published_sd3(root)),
        "text_encoders": [
            root / name / "model.safetensors"
            for name in ("text_encoder_3", "text_encoder", "text_encoder_2")
        ],
    }


def flux_comfy(root, shop):
    return {"path": made.written(shop / "a.safetensors", made.comfy_flux(root))}


def flux_parts(root, shop):
    """As Black Forest Labs and ComfyUI publish it, each part a file of its own."""
    clip = made.wrapped_clip(made.weights(root / "text_encoder"))
    clip["text_projection.weight"] = torch.eye(32)
    return {
        "path": made.written(
            shop / "a.safetensors", made.bfl_flux(made.weights(root / "transformer"))
        ),
        "vae": made.written(shop / "b.safetensors", made.ldm_vae(made.weights(root / "vae"))),
        "text_encoders": [
            root / "text_encoder_2",
            made.written(shop / "c.safetensors", clip),
        ],
    }


LAYOUTS = {
    "sdxl": (sdxl_published, sdxl_denoiser),
    "sdxl_v": (sdxl_published,),
    "sd35": (sd35_complete, sd35_with_files),
    "flux": (flux_comfy, flux_parts),
    "flux_schnell": (flux_comfy,),
}


@pytest.mark.parametrize(
    ("name", "layout"), [(name, each) for name, layouts in LAYOUTS.items() for each in layouts]
)
def test_the_same_tensors_as_the_folder(request, tmp_path, name, layout):
    root = request.getfixturevalue(f"{name}_checkpoint")
    single = open_checkpoint(**layout(root, tmp_path), config=root)
    folder = open_checkpoint(root)
    assert (single.family, single.layout) == (folder.family, "single file")
    assert single.scheduler == folder.scheduler
    assert [*single.components] == [*folder.components]
    assert single.tokenizers == folder.tokenizers
    for name, expected in folder.components.items():
        component = single.components[name]
        assert component.class_name == expected.class_name
        assert dict(component.config) == dict(expected.config)
        assert all(name == tensor.name for name, tensor in component.tensors.items())
        assert values(component).keys() == values(expected).keys()
        for key, value in values(expected).items():
            if isinstance(component.tensors.get(key), Identity):
                value = torch.eye(len(value))
            assert torch.equal(values(component)[key], value), key


def values(component):
    """Its tensors as values; without what only a whole CLIP has or wraps them in."""
    if component.class_name != "CLIPTextModel":
        return {name: value(tensor) for name, tensor in component.tensors.items()}
    return {
        name.removeprefix("text_model."): value(tensor)
        for name, tensor in component.tensors.items()
        if name != "text_projection.weight"
    }


def value(tensor):
    return torch.cat([*tensor.chunks()]).view(tensor.shape)


def test_only_clip_l_of_sd3_is_unprojected(sd35_checkpoint, sdxl_checkpoint, tmp_path):
    """SD3's own code does not project it, so what a file holds there is OpenAI's, not SD3's."""
    state = made.sd3_with_encoders(sd35_checkpoint)
    state[f"{made.CLIP_L}text_projection.weight"] = torch.full((32, 32), 7.0)
    file = made.written(tmp_path / "a.safetensors", state)
    opened = open_checkpoint(file, config=sd35_checkpoint)
    found = {
        name: isinstance(component.tensors["text_projection.weight"], Identity)
        for name, component in opened.components.items()
        if component.class_name == "CLIPTextModelWithProjection"
    }
    assert found == {"text_encoder": True, "text_encoder_2": False}
    own = open_checkpoint(
        file, config=sd35_checkpoint, text_encoders=[sd35_checkpoint / "text_encoder"]
    )
    kept = own.components["text_encoder"].tensors["text_projection.weight"]
    assert kept.file.parent == sd35_checkpoint / "text_encoder"


def test_what_a_file_lacks_is_known_but_absent(sd35_checkpoint, tmp_path):
    file = made.written(tmp_path / "a.safetensors", made.published_sd3(sd35_checkpoint))
    opened = open_checkpoint(file, config=sd35_checkpoint)
    assert [*opened.components] == ["transformer", "vae"]
    assert opened.configs["text_encoder_3"]["d_model"] == 64
    assert opened.tokenizers == {}
    some = open_checkpoint(
        file,
        config=sd35_checkpoint,
        text_encoders=[sd35_checkpoint / f"text_encoder{end}" for end in ("", "_2")],
    )
    assert [*some.tokenizers] == ["tokenizer", "tokenizer_2"]


def test_a_supplied_vae_replaces_a_folders_own(sd35_checkpoint, flux_checkpoint, tmp_path):
    state = {name: 2 * each for name, each in made.weights(sd35_checkpoint / "vae").items()}
    file = made.written(tmp_path / "vae.safetensors", state)
    opened = open_checkpoint(sd35_checkpoint, vae=file)
    assert opened.components["vae"].origin == file
    assert opened.configs["vae"]["scaling_factor"] == 1.5305
    key = "decoder.conv_in.bias"
    assert torch.equal(value(opened.components["vae"].tensors[key]), state[key])


def test_a_folder_with_one_file_is_that_file(flux_checkpoint):
    opened = open_checkpoint(flux_checkpoint / "transformer", config=flux_checkpoint)
    assert (opened.layout, [*opened.components]) == ("single file", ["transformer"])


@pytest.mark.parametrize("prefix", [made.LDM, ""])
@pytest.mark.parametrize(
    ("markers", "prediction", "rescaled"),
    [
        ((), "epsilon", None),
        (("v_pred",), "v_prediction", None),
        (("v_pred", "ztsnr"), "v_prediction", True),
    ],
)
def test_markers_say_how_an_sdxl_was_trained(tmp_path, prefix, markers, prediction, rescaled):
    shapes = {
        prefix + name: tensor.shape
        for name, tensor in made.ldm_unet(made.full_size("sdxl-base", "unet")).items()
    }
    file = made.sparse(tmp_path / "a.safetensors", {**shapes, **dict.fromkeys(markers, (0,))})
    opened = open_checkpoint(file)
    scheduler = opened.scheduler
    assert not set(markers) & opened.denoiser.tensors.keys()
    assert scheduler["prediction_type"] == prediction
    assert scheduler.get("rescale_betas_zero_snr") is rescaled


def converted_unet(state):
    return oracle.convert_ldm_unet_checkpoint(state, configs("sdxl-base")["unet"])


def converted_vae(state):
    return oracle.convert_ldm_vae_checkpoint(state, configs("flux-dev")["vae"])


def converted_open_clip(state):
    model = made.network("CLIPTextModelWithProjection", configs("sdxl-base")["text_encoder_2"])
    return oracle.convert_open_clip_checkpoint(model, state, prefix=made.SDXL_CLIP_G)


SD3, FLUX = (
    oracle.convert_sd3_transformer_checkpoint_to_diffusers,
    oracle.convert_flux_transformer_checkpoint_to_diffusers,
)
CONVERTERS = [
    ("sdxl-base", "unet", made.ldm_unet, made.LDM, converted_unet),
    ("sdxl-base", "vae", made.ldm_vae, made.VAE, converted_vae),
    ("sdxl-base", "text_encoder_2", made.open_clip, made.SDXL_CLIP_G, converted_open_clip),
    ("sd3-medium", "transformer", made.sd3_mmdit, made.LDM, SD3),
    ("sd3.5-medium", "transformer", made.sd3_mmdit, made.LDM, SD3),
    ("sd3.5-large", "transformer", made.sd3_mmdit, made.LDM, SD3),
    ("flux-dev", "transformer", made.bfl_flux, "", FLUX),
    ("flux-schnell", "transformer", made.bfl_flux, made.LDM, FLUX),
    ("flux-dev", "vae", made.ldm_vae, "", converted_vae),
]


@pytest.mark.parametrize(("model", "part", "layout", "prefix", "convert"), CONVERTERS)
def test_diffusers_converts_the_same_rows(tmp_path, model, part, layout, prefix, convert):
    """Every published key with every row of it, each row one number that no other row has."""
    state, first = {}, 0
    for name, tensor in layout(made.full_size(model, part)).items():
        height = tensor.shape[0] if tensor.shape else 1
        numbers = torch.arange(first, first + height, dtype=torch.int32)
        state[prefix + name] = numbers.view(tensor.shape and (-1, *[1] * (tensor.ndim - 1)))
        first += height
    file = made.written(tmp_path / "a.safetensors", state)
    (found,) = detect_networks(file).networks
    expected = convert(dict(state))
    assert found.tensors.keys() == expected.keys()
    for name, tensor in found.tensors.items():
        assert torch.equal(value(tensor), expected[name]), name


def bundle_files(root) -> Mapping[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in all_files(root)
        if file.suffix in (".onnx", ".safetensors") or file.name == "tokenizer.json"
    }


def unwrapped(bundle):
    """CLIP's graph and weights under the names without `text_model.`, which files wrap them in."""
    model = onnx.load(bundle / "text_encoder" / "model.onnx", load_external_data=False)
    text = re.sub(r"text_model\.", "", onnx.printer.to_text(model))
    return re.sub(r'"(offset|length)": "\d+"', "", text), {
        name.removeprefix("text_model."): tensor
        for name, tensor in load_file(bundle / "text_encoder" / "weights.safetensors").items()
    }


@pytest.mark.parametrize(
    ("name", "layout"),
    [("sdxl", sdxl_published), ("sd35", sd35_complete), ("flux", flux_parts)],
)
def test_the_same_bundle_as_the_folder(request, tmp_path, name, layout):
    root = request.getfixturevalue(f"{name}_checkpoint")
    expected = request.getfixturevalue(f"{name}_bundle")
    words = layout(root, tmp_path)
    if name == "sd35":  # whose CLIP-L has a projection here, as SD3's own has not
        words["text_encoders"] = [root / "text_encoder"]
    bundle = export(words.pop("path"), tmp_path / "bundle", config=root, **words).root
    found, wanted = bundle_files(bundle), bundle_files(expected)
    assert found.keys() == wanted.keys()
    wrapped = {key for key in found if name != "sd35" and key.startswith("text_encoder/")}
    assert [key for key in found if found[key] != wanted[key] and key not in wrapped] == []
    (graph, tensors), (graph_too, tensors_too) = unwrapped(bundle), unwrapped(expected)
    assert graph == graph_too
    assert tensors.keys() == tensors_too.keys()
    assert all(torch.equal(tensors[key], tensors_too[key]) for key in tensors)
