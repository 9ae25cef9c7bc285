"""The operations of a run, counted with one block of each kind."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from eri_export import make_plan
from eri_export.gate.pytorch_reference import flops, read_weight
from eri_export.graphs.recipes.base import example
from tests.support import single_files as made
from tests.support.published_models import PUBLISHED


def counted_whole(recipe, sizes):
    """The operations of every block, by PyTorch's own counter."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        recipe.wrap(recipe.build(), torch.float32)(*example(recipe, sizes))
    return counter.get_total_flops()


def assert_counted(recipes):
    for recipe in recipes:
        ends = [
            {k: getattr(each, end) for k, each in recipe.ranges.items()} for end in ("min", "max")
        ]
        runs = [recipe.sizes[0], *ends]
        assert flops(recipe, runs) == [counted_whole(recipe, sizes) for sizes in runs], recipe.name


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_repeated_blocks_count_as_often_as_they_are(request, family):
    assert_counted(make_plan(request.getfixturevalue(f"{family}_checkpoint")).recipes)


def test_so_they_do_in_a_published_network(tmp_path):
    file = made.sparse(tmp_path / "model.safetensors", PUBLISHED["flux-schnell"][0]("flux-schnell"))
    (recipe,) = make_plan(file).recipes
    assert flops(recipe, recipe.sizes[:1]) == [counted_whole(recipe, recipe.sizes[0])]


def test_a_weight_is_read_in_float32_and_rounded_like_the_bundles(sd35_checkpoint):
    (recipe,) = (
        each
        for each in make_plan(sd35_checkpoint, precision="bf16").recipes
        if each.name == "denoiser"
    )
    stored = load_file(next((sd35_checkpoint / "transformer").glob("*.safetensors")))
    name, kept = "proj_out.weight", "time_text_embed.timestep_embedder.linear_1.weight"
    assert torch.equal(read_weight(recipe, name, name), stored[name].bfloat16().float())
    assert not torch.equal(stored[name].bfloat16().float(), stored[name].float())
    assert torch.equal(read_weight(recipe, kept, kept), stored[kept].float())
