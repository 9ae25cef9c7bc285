"""UNets cut down from SDXL's are told by their shapes, in either layout, with no config."""

from __future__ import annotations

import pytest

from eri_export import open_checkpoint
from eri_export.checkpoints.shipped_configs import configs
from eri_export.graphs.weight_names import file_names
from eri_runtime.errors import CheckpointError
from tests.support import single_files as made
from tests.support.published_models import shapes

# what each has of its own, by its published config
SMALL = {
    "SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2, 4],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "Vega": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 2],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "KOALA-700M": {
        "mid_block_type": None,
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2, 5],
    },
    "KOALA-1B": {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "LCM": {"time_cond_proj_dim": 256},
    "uneven": {
        "transformer_layers_per_block": [1, [1, 2], 3],
        "reverse_transformer_layers_per_block": [3, [2, 1, 1], 1],
    },
}


@pytest.mark.parametrize("layout", [made.ldm_unet, dict])
@pytest.mark.parametrize("model", SMALL)
def test_the_network_of_the_config_is_built_from_the_file_alone(tmp_path, model, layout):
    config = {**configs("sdxl-base")["unet"], **SMALL[model]}
    state = made.network("UNet2DConditionModel", config).state_dict()
    file = made.sparse(tmp_path / "a.safetensors", shapes(layout(dict(state))))
    opened = open_checkpoint(file)
    built = made.network("UNet2DConditionModel", opened.denoiser.config)
    assert {name: each.shape for name, each in built.state_dict().items()} == {
        name: each.shape for name, each in state.items()
    }
    assert set(file_names(built, opened.denoiser).values()) == set(opened.denoiser.tensors)
    assert opened.denoiser.config["mid_block_type"] == config["mid_block_type"]


def test_a_missing_part_is_still_damage(tmp_path):
    config = {**configs("sdxl-base")["unet"], **SMALL["SSD-1B"]}
    state = dict(made.network("UNet2DConditionModel", config).state_dict())
    del state["conv_out.weight"]
    with pytest.raises(CheckpointError, match=r"conv_out\.weight"):
        open_checkpoint(made.sparse(tmp_path / "a.safetensors", shapes(state)))
