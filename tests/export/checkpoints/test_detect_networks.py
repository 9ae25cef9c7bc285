"""What a file is, told by its header: published models at full size, and what fits none."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from eri_export import open_checkpoint
from eri_export.checkpoints.shipped_configs import configs, tokenizer
from eri_export.graphs.weight_names import file_names
from eri_runtime.errors import CheckpointError, NotACheckpointError, PickleError, UsageError
from tests.support import single_files as made
from tests.support.published_models import PUBLISHED, flux, shapes


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_at_full_size(tmp_path, model):
    """Every name and shape of diffusers' own network, and the very config it was published with."""
    layout, family, held = PUBLISHED[model]
    opened = open_checkpoint(made.sparse(tmp_path / "anything.safetensors", layout(model)))
    assert (opened.family, len(opened.components)) == (family, held)
    published = configs(model)
    assert opened.scheduler == published["scheduler"]
    assert opened.index == published["model_index"]
    for name, component in opened.components.items():
        same = {key: component.config[key] for key in published[name]}
        assert same == published[name]
        network = made.network(component.class_name, component.config)
        names = file_names(network, component)
        assert set(names.values()) == set(component.tensors)
    encoders = sum(name.startswith("text_encoder") for name in opened.components)
    assert len(opened.tokenizers) == encoders


def test_flux_and_its_parts_as_comfyui_has_them(tmp_path):
    def file(name, part, layout):
        return made.sparse(tmp_path / name, shapes(layout(made.full_size("flux-dev", part))))

    opened = open_checkpoint(
        file("a", "transformer", made.bfl_flux),
        vae=file("b", "vae", made.ldm_vae),
        text_encoders=[
            file("c", "text_encoder_2", dict),
            file("d", "text_encoder", made.wrapped_clip),
        ],
    )
    assert [*opened.components] == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    assert opened.tokenizers == {"tokenizer": tokenizer("clip-l"), "tokenizer_2": tokenizer("t5")}
    for component in opened.components.values():
        file_names(made.network(component.class_name, component.config), component)


def test_other_widths_are_read_where_a_head_is_as_wide(tmp_path):
    """A smaller Flux: heads of 128, and everything else its own."""
    config = {
        **configs("flux-dev")["transformer"],
        "num_attention_heads": 2,
        "num_layers": 1,
        "num_single_layers": 3,
        "joint_attention_dim": 96,
        "pooled_projection_dim": 48,
    }
    state = made.network("FluxTransformer2DModel", config).state_dict()
    opened = open_checkpoint(
        made.sparse(tmp_path / "a.safetensors", shapes(made.bfl_flux(state), made.LDM))
    )
    found = opened.components["transformer"].config
    assert {key: found[key] for key in config} == config


def test_a_width_no_published_head_goes_in_asks_for_configs(sdxl_checkpoint, tmp_path):
    file = made.written(tmp_path / "a.safetensors", made.published_sdxl(sdxl_checkpoint))
    with pytest.raises(CheckpointError, match=r"32 along axis 0.*multiple of 64.*--config"):
        open_checkpoint(file)


def test_a_vocabulary_no_shipped_tokenizer_has_asks_for_configs(tmp_path):
    encoder = {**configs("flux-dev")["text_encoder"], "vocab_size": 700}
    state = made.network("CLIPTextModelWithProjection", encoder).state_dict()
    with pytest.raises(CheckpointError, match=r"700 tokens.*49408 tokens of clip-l.*--config"):
        open_checkpoint(
            made.sparse(tmp_path / "a.safetensors", flux("flux-dev")),
            text_encoders=[made.sparse(tmp_path / "b.safetensors", shapes(state))],
        )


# a header that is that of a published model but for one entry
BENT = [
    ("flux-dev", "single_blocks.3.linear1.weight", (21503, 3072), "multiple of 7 rows"),
    ("flux-dev", "final_layer.adaLN_modulation.1.bias", (), "multiple of 2 rows"),
    ("flux-dev", "double_blocks.0.img_attn.norm.query_norm.scale", (0,), "axis 0"),
    ("flux-dev", "double_blocks.0.img_attn.norm.query_norm.scale", (64,), "heads of 64"),
    ("flux-dev", "txt_in.weight", (3072,), "axis 1"),
    ("flux-dev", "txt_in.weight", None, "no context_embedder.weight"),
    ("sd3.5-large", made.LDM + "pos_embed", (1, 36863, 2432), "square number of positions"),
    ("sd3.5-large", made.LDM + "final_layer.linear.weight", (63, 2432), "multiple of 4"),
    (
        "sd3.5-large",
        made.VAE + "encoder.mid.attn_1.q.weight",
        (512, 512, 3, 3),
        "1x1 convolution",
    ),
    ("sdxl-base", made.VAE + "encoder.down.2.block.0.conv1.weight", (500, 256, 3, 3), "of 32"),
    ("sdxl-base", made.SDXL_CLIP_G + "text_projection", (1280,), "a matrix"),
]


@pytest.mark.parametrize(("model", "key", "shape", "words"), BENT)
def test_headers_that_no_network_fits(tmp_path, model, key, shape, words):
    header = PUBLISHED[model][0](model)
    assert key in header
    bent = {name: shape if name == key else size for name, size in header.items()}
    if shape is None:
        del bent[key]
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(made.sparse(tmp_path / "a.safetensors", bent))


def test_arguments_that_do_not_go_with_the_layout(flux_checkpoint, tmp_path):
    with pytest.raises(UsageError, match="config"):
        open_checkpoint(flux_checkpoint, config=flux_checkpoint)
    file = flux_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UsageError, match="variant"):
        open_checkpoint(file, config=flux_checkpoint, variant="fp16")


def test_configs_of_another_family(flux_checkpoint, sd35_checkpoint, tmp_path):
    file = flux_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match=r"StableDiffusion3Pipeline.*FluxPipeline"):
        open_checkpoint(file, config=sd35_checkpoint)
    with pytest.raises(NotACheckpointError, match="configs of parts"):
        open_checkpoint(file, config=tmp_path)


def test_a_config_without_the_number_it_must_say(sdxl_checkpoint, tmp_path):
    file = made.written(tmp_path / "a.safetensors", made.published_sdxl(sdxl_checkpoint))
    given = tmp_path / "configs" / "text_encoder"
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        config = json.loads((sdxl_checkpoint / part / "config.json").read_text())
        config |= {"num_attention_heads": "two"} if part == "text_encoder" else {}
        (given.parent / part).mkdir(parents=True)
        (given.parent / part / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"num_attention_heads.*'two'.*a positive number"):
        open_checkpoint(file, config=given.parent)


def test_a_folder_of_several_files(tmp_path):
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(NotACheckpointError, match=r"'a.safetensors', 'b.safetensors'.*name one"):
        open_checkpoint(tmp_path)


def test_parts_that_are_not_what_they_are_given_as(sd35_checkpoint, flux_checkpoint, tmp_path):
    vae = sd35_checkpoint / "vae"
    encoder = sd35_checkpoint / "text_encoder_3" / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"t5.*expected vae"):
        open_checkpoint(sd35_checkpoint, vae=encoder)
    with pytest.raises(CheckpointError, match=r"vae.*expected clip or t5"):
        open_checkpoint(sd35_checkpoint, text_encoders=[vae])
    with pytest.raises(CheckpointError, match="a second text_encoder_3"):
        open_checkpoint(sd35_checkpoint, text_encoders=[encoder, encoder])
    with pytest.raises(NotACheckpointError, match="no such path"):
        open_checkpoint(sd35_checkpoint, vae=tmp_path / "nowhere")
    with pytest.raises(NotACheckpointError, match=r"no config.json"):
        open_checkpoint(sd35_checkpoint, vae=tmp_path)
    (tmp_path / "vae.pt").touch()
    with pytest.raises(PickleError):
        open_checkpoint(sd35_checkpoint, vae=tmp_path / "vae.pt")
    with pytest.raises(CheckpointError, match=r"clip-l|a second"):
        open_checkpoint(flux_checkpoint, text_encoders=[sd35_checkpoint, sd35_checkpoint])


def test_an_encoder_the_family_has_no_place_for(sdxl_checkpoint, sd35_checkpoint):
    t5 = sd35_checkpoint / "text_encoder_3"
    with pytest.raises(CheckpointError, match=r"got t5, expected clip-l or clip-g"):
        open_checkpoint(sdxl_checkpoint, text_encoders=[t5])
