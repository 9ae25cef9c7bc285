"""`--scheduler` and the marks of a file: what diffusers' authors set for the same checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import create_vae_diffusers_config_from_ldm

from eri_export import make_plan, open_checkpoint
from eri_export.checkpoints.scheduler_facts import own_sampling, settings_of
from eri_export.checkpoints.sources.scheduler_presets import PRESETS
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime.commands.main import main
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    UnknownNameError,
    UsageError,
)
from tests.support import single_files as made
from tests.support.schedulers.loops import difference

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "samplers.md"
# the recipes of the authors' model cards: a class, the keys passed to its `from_config`, and the
# steps and guidance of the pipeline's call
RECIPES = {
    ("turbo", "sdxl"): ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 0),
    ("turbo", "sd35"): ("FlowMatchEulerDiscreteScheduler", {}, 4, 0),
    ("lightning", "sdxl"): ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 0),
    ("hyper", "sdxl"): ("DDIMScheduler", {"timestep_spacing": "trailing"}, 8, 0),
    ("hyper", "flux"): ("FlowMatchEulerDiscreteScheduler", {}, 8, 3.5),
    ("lcm", "sdxl"): ("LCMScheduler", {}, 4, 1),
    ("tcd", "sdxl"): ("TCDScheduler", {}, 4, 0),
}
# of the published SDXL's repository; a tiny checkpoint's is shorter
PUBLISHED = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}


def test_every_preset_has_its_recipe():
    assert {(name, family) for name, families in PRESETS.items() for family in families} == set(
        RECIPES
    )


@pytest.mark.parametrize(("name", "family"), RECIPES)
def test_a_preset_draws_what_the_recipe_draws(request, name, family):
    kind, keys, steps, guidance = RECIPES[name, family]
    root = request.getfixturevalue(f"{family}_checkpoint")
    plain = open_checkpoint(root)
    base = {**plain.scheduler, **(PUBLISHED if family == "sdxl" else {})}
    opened = open_checkpoint(root, scheduler=name)
    ours = {**base, **PRESETS[name][family].keys}
    assert {**base, **opened.scheduler} == ours
    theirs = getattr(diffusers, kind).from_config(base, **keys).config
    assert ours["_class_name"] == kind
    for count in (1, 2, steps):
        assert difference(family, ours, count) <= 1e-4
    assert {key: theirs[key] for key in ours if key in theirs and key[0] != "_"} == {
        key: ours[key] for key in ours if key in theirs and key[0] != "_"
    }
    assert opened.steps_and_guidance == (steps, guidance)
    assert opened.digest() != plain.digest()


@pytest.mark.parametrize("name", [name for name in PRESETS if "sdxl" in PRESETS[name]])
def test_a_preset_needs_no_key_of_the_published_config(sdxl_checkpoint, name):
    opened = open_checkpoint(sdxl_checkpoint, scheduler=name)
    assert not PUBLISHED.keys() & json.loads(
        (sdxl_checkpoint / "scheduler" / "scheduler_config.json").read_text()
    )
    assert own_sampling(settings_of(opened)).sampler in ("euler", "euler_a", "ddim", "lcm", "tcd")


def test_the_bundles_defaults_are_the_presets(sdxl_checkpoint):
    bundle = make_plan(sdxl_checkpoint, scheduler="turbo").bundle
    assert bundle.schedule.spacing == "trailing"
    assert bundle.defaults.sampler == "euler_a"
    assert bundle.defaults.num_inference_steps == 4
    assert bundle.defaults.guidance_scale == 0


def test_a_unet_that_embeds_guidance_gets_lcms(tmp_path):
    unet = dict(made.full_size("sdxl-base", "unet"))
    unet["time_embedding.cond_proj.weight"] = torch.empty(320, 256, device="meta")
    file = made.sparse(tmp_path / "lcm.safetensors", {name: t.shape for name, t in unet.items()})
    opened = open_checkpoint(file, scheduler="lcm")
    assert opened.denoiser.config["time_cond_proj_dim"] == 256
    assert opened.steps_and_guidance == (4, 8)


CONFIG = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "use_karras_sigmas": True,
}


@pytest.mark.parametrize("where", ["own.json", "scheduler_config.json", "scheduler"])
def test_a_config_replaces_the_checkpoints(sdxl_checkpoint, tmp_path, where):
    file = tmp_path / where
    if where == "scheduler":
        file.mkdir()
        file /= "scheduler_config.json"
    file.write_text(json.dumps(CONFIG))
    given = file if where == "own.json" else tmp_path
    opened = open_checkpoint(sdxl_checkpoint, scheduler=given)
    assert opened.scheduler == CONFIG
    settings = settings_of(opened)
    assert own_sampling(settings).sampler == "dpmpp_2m"
    assert training_schedule(settings).prediction == "v"
    assert opened.steps_and_guidance is None


def test_the_file_is_named_if_it_cannot_be_read(sdxl_checkpoint, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**CONFIG, "solver_order": 9}))
    with pytest.raises(CheckpointError, match=r"mine\.json: solver_order: got 9"):
        make_plan(sdxl_checkpoint, scheduler=file)
    file.write_text("[]")
    with pytest.raises(NotACheckpointError, match=r"mine\.json: got list"):
        open_checkpoint(sdxl_checkpoint, scheduler=file)


@pytest.mark.parametrize(
    ("family", "name", "error", "words"),
    [
        ("sdxl", "flash", UnknownNameError, "'flash', which is no preset.*turbo, lightning, hyper"),
        ("sdxl", "x" * 999, UnknownNameError, "is no preset"),
        ("flux", "lightning", UsageError, "lightning for a checkpoint of the flux.*one of hyper"),
        ("sd35", "lcm", UsageError, "lcm for a checkpoint of the sd35 family, expected one of tur"),
    ],
)
def test_refused_by_name(request, family, name, error, words):
    root = request.getfixturevalue(f"{family}_checkpoint")
    with pytest.raises(error, match=words):
        open_checkpoint(root, scheduler=name)


def test_a_dry_run_says_what_a_call_draws_with(sdxl_checkpoint, tmp_path, capsys):
    words = ["export", str(sdxl_checkpoint), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*words, "--scheduler", "lightning"]) == 0
    drawn = "draws with euler, trailing spacing, down to 0, in 4 steps at guidance 0"
    assert drawn in capsys.readouterr().out


def test_the_guide_has_every_preset():
    text = GUIDE.read_text("utf-8").split("## Distilled models")[1].split("\n## ")[0]
    rows = {
        row[0]: row
        for row in (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| `")
        )
    }
    assert set(rows) == {f"`--scheduler {name}`" for name in PRESETS}
    for (name, family), (kind, _, steps, guidance) in RECIPES.items():
        row = rows[f"`--scheduler {name}`"]
        assert (f"`{kind}`" in row[2]) or f"{FAMILIES[family]}: its own" in row[2]
        assert re.search(rf"\b{steps} steps\b", row[3])
        assert re.search(rf"guidance {guidance:g}\b|: {guidance:g}\b", row[3])


FAMILIES = {"sd35": "SD3.5", "flux": "Flux", "sdxl": "SDXL"}


# marks of EDM


def marked(tmp_path, **marks):
    """SDXL's UNet at full size without a byte of weights, with marks that hold numbers."""
    unet = made.ldm_unet(made.full_size("sdxl-base", "unet"))
    shapes = {made.LDM + name: tensor.shape for name, tensor in unet.items()}
    names = {name.replace("__", "."): torch.tensor(value) for name, value in marks.items()}
    file = made.sparse(
        tmp_path / "edm.safetensors",
        {**{name: [each.numel() * 2] for name, each in names.items()}, **shapes},
    )
    return written_over(file, names)


def written_over(file, values):
    """The file with these tensors as float32, which begin it."""
    content = file.open("r+b")
    with content:
        size = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(size))
        for name, value in values.items():
            header[name] |= {"dtype": "F32", "shape": list(value.shape)}
        text = json.dumps(header, separators=(",", ":")).encode()
        content.seek(8)
        content.write(text.ljust(size))
        assert len(text) <= size
        for name, value in values.items():
            content.seek(8 + size + header[name]["data_offsets"][0])
            content.write(value.float().numpy().tobytes())
    return file


MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]


def test_playground_in_one_file_is_read_as_diffusers_reads_it(tmp_path):
    file = marked(tmp_path, edm_mean=[[[[m]] for m in MEAN]], edm_std=[[[[s]] for s in STD]])
    opened = open_checkpoint(file)
    assert not any(name.startswith("edm") for name in opened.denoiser.tensors)
    plan_of = settings_of(opened)
    assert own_sampling(plan_of).sampler == "dpmpp_2m"
    schedule = training_schedule(plan_of)
    theirs = diffusers.EDMDPMSolverMultistepScheduler().config
    for name in ("sigma_min", "sigma_max", "sigma_data", "rho"):
        assert getattr(schedule, name) == theirs[name]
    ldm = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    ldm |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    config = {"model": {"params": {"first_stage_config": {"params": {"ddconfig": ldm}}}}}
    state = {"edm_mean": torch.tensor(MEAN), "edm_std": torch.tensor(STD)}
    vae = create_vae_diffusers_config_from_ldm(config, state)
    assert opened.configs["vae"]["scaling_factor"] == vae["scaling_factor"]
    assert torch.tensor(opened.configs["vae"]["latents_mean"]).equal(vae["latents_mean"])
    assert torch.tensor(opened.configs["vae"]["latents_std"]).equal(vae["latents_std"])
    assert opened.steps_and_guidance == (50, 3.0)


def test_cosxl_in_one_file_has_the_levels_of_its_marks(tmp_path):
    opened = open_checkpoint(
        marked(tmp_path, edm_vpred__sigma_min=[0.002], edm_vpred__sigma_max=[120.0])
    )
    schedule = training_schedule(settings_of(opened))
    assert (schedule.kind, schedule.prediction, schedule.spacing) == ("edm", "v", "exponential")
    assert schedule.sigma_min == pytest.approx(0.002)
    assert (schedule.sigma_max, schedule.sigma_data) == (120, 1)


def test_a_preset_does_not_go_with_edms_levels(tmp_path):
    file = marked(tmp_path, edm_mean=MEAN, edm_std=STD)
    with pytest.raises(UsageError, match=r"got turbo for a model trained with EDM's noise levels"):
        open_checkpoint(file, scheduler="turbo")


@pytest.mark.parametrize("std", [[1.0, 2.0, float("nan"), 1.0], [1.0, 2.0, 0.0, 1.0]])
def test_marks_that_hold_no_numbers_are_damage(tmp_path, std):
    with pytest.raises(DamagedWeightsError, match="edm_std"):
        open_checkpoint(marked(tmp_path, edm_mean=MEAN, edm_std=std))
