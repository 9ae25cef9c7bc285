"""Stamped blocks beside the same network traced whole: the same weights, the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from eri_export.checkpoints.sources.folder import open_part
from eri_export.graphs import trace as module
from eri_export.graphs.recipes.base import fixed
from eri_export.graphs.recipes.flux import flux_recipe
from eri_export.graphs.recipes.mmdit import mmdit_recipe
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.text import ClipHiddenPooled, clip_recipe, t5_recipe
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.graphs.repeated_blocks import stand_ins
from eri_export.graphs.trace import trace
from eri_export.plan.plan import spec_of
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort.session import OrtExecutor
from tests.support.checkpoints import randomised
from tests.support.components import up_to, write_component

SIDE = ShapeRange(min=2, opt=16, max=32)
FRAME = Frame(unit=2, height=SIDE, width=SIDE)


def unet():
    network = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        transformer_layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    return network, lambda source: unet_recipe(source, "fp32", FRAME, 16, up_to(16, 64))


def mmdit():
    network = SD3Transformer2DModel(
        sample_size=16,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )
    return network, lambda source: mmdit_recipe(source, "fp16", FRAME, up_to(40, 48))


def flux():
    network = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return network, lambda source: flux_recipe(source, "fp32", FRAME, up_to(32, 48))


def clip():
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=98,
    )
    network = CLIPTextModelWithProjection(config)
    return network, lambda source: clip_recipe(source, "fp32", ClipHiddenPooled, 16)


def t5():
    config = T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False,
    )  # fmt: skip
    return T5EncoderModel(config), lambda source: t5_recipe(source, "fp16", up_to(32, 48))


# how many blocks are stamped, of how many kinds
NETWORKS = [(unet, 4 * 2, 1), (mmdit, 2 + 2, 2), (flux, 2 + 2, 2), (clip, 3, 1), (t5, 2, 1)]


@pytest.mark.parametrize(("make", "blocks", "kinds"), NETWORKS)
def test_a_stamped_graph_is_the_unrolled_one(make, blocks, kinds, tmp_path, monkeypatch):
    network, recipe_of = make()
    randomised(network, 0).save_pretrained(tmp_path / "part")
    # in half the time; every bundle has stamped blocks of open sizes
    recipe = fixed(recipe_of(open_part(tmp_path / "part", "part", type(network).__name__)))
    stamped = []
    stamp = module.stamp

    def counting(model, block, paths, *rest):
        stamped.append(len(paths))
        return stamp(model, block, paths, *rest)

    monkeypatch.setattr(module, "stamp", counting)
    models = [trace(recipe, blocks=mode) for mode in ("unrolled", "stamped")]
    assert (sum(stamped), len(stamped)) == (blocks, kinds)
    assert not models[1].functions
    outputs = [_outputs(recipe, model, tmp_path / str(n)) for n, model in enumerate(models)]
    for unrolled, stamped_too in zip(*outputs, strict=True):
        for name, value in unrolled.items():
            assert np.ptp(value) > 0
            np.testing.assert_array_equal(value, stamped_too[name])


def _outputs(recipe, model, home):
    """What the graph computes at every parity size, in one thread."""
    graph = write_component(model, recipe, home)
    with OrtExecutor(graph, spec_of(recipe), settings=Settings(threads=1)) as executor:
        return [executor.run(recipe.sample(sizes, 0)) for sizes in recipe.sizes[1:]]


class Layer(nn.Module):
    """A block with a setting that no weight shows."""

    def __init__(self, scale):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = scale

    def forward(self, x, times=1):
        return x + self.scale * times * self.linear(x)


class Layers(nn.Module):
    def __init__(self, scales, times):
        super().__init__()
        self.layers = nn.ModuleList(Layer(scale) for scale in scales)
        self.times = times

    def forward(self, x):
        for layer, times in zip(self.layers, self.times, strict=True):
            x = layer(x, times=times)
        return x


def kinds_of(network, *example):
    with stand_ins(network, (Layer,)) as kinds:
        torch.export.export(network, example, strict=False)
    return sorted(sorted(kind.paths) for kind in kinds.values())


def test_blocks_that_compute_differently_are_of_different_kinds():
    x = torch.zeros(2, 4)
    assert kinds_of(Layers([1.0, 1.0, 1.0], [1, 1, 1]), x) == [["layers.0", "layers.1", "layers.2"]]
    assert kinds_of(Layers([1.0, 2.0, 1.0], [1, 1, 1]), x) == [["layers.0", "layers.2"]]
    assert kinds_of(Layers([1.0, 1.0, 1.0], [1, 1, 3]), x) == [
        ["layers.0", "layers.1"],
        ["layers.2"],
    ]
    assert kinds_of(Layers([1.0, 2.0], [1, 1]), x) == []


def test_a_network_is_whole_again_after_tracing():
    network = Layers([1.0, 1.0], [1, 1])
    kinds_of(network, torch.zeros(2, 4))
    assert all("forward" not in vars(layer) for layer in network.layers)
    x = torch.ones(1, 4)
    first = network.layers[0]
    torch.testing.assert_close(network(x), network.layers[1](x + first.linear(x)))
