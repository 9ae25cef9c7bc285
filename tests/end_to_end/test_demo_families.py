"""The embedded SDXL and Flux: whole when assembled, right in diffusers and in eri."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image

import eri_runtime as eri
from eri_export.commands.demo import PROMPTS
from eri_export.embedded import FAMILIES, assemble, checkpoint, models, train_flux, train_vae
from eri_runtime.commands.main import main
from eri_runtime.errors import UnknownNameError, UsageError
from tests.support.emoji import nearest_captions, sheet_images

SHARERS = ("sdxl", "flux")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """The folder in which `eri demo` was run for both families."""
    folder = tmp_path_factory.mktemp("demos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for family in SHARERS:
            assert main(["demo", "--family", family]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Both families' whole folders, by the documented command."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        for family in SHARERS:
            patch.setattr("sys.argv", ["assemble", family, str(folder / family)])
            assemble.main()
    return folder


def test_the_three_checkpoints_are_small_enough_to_ship():
    folders = [checkpoint(family) for family in FAMILIES]
    sizes = [path.stat().st_size for folder in folders for path in folder.rglob("*.*")]
    assert sum(sizes) <= 21_500_000


@pytest.mark.parametrize("family", SHARERS)
def test_a_folder_holds_nothing_that_it_shares(family):
    own = {path.name for path in checkpoint(family).iterdir()}
    assert own.isdisjoint(assemble.SHARED[family])
    assert {"LICENSE", "README.md", "model_index.json", "scheduler"} <= own


@pytest.mark.parametrize("family", SHARERS)
def test_the_contact_sheet_shows_the_prompts(demos, family):
    with Image.open(demos / "out" / f"demo-{family}.png") as sheet:
        assert sheet.text["parameters"].startswith(", ".join(PROMPTS))
        found = nearest_captions(sheet_images(sheet))
    assert found == list(PROMPTS)


@pytest.mark.parametrize("family", SHARERS)
def test_the_images_are_diffusers_images(demos, checkpoints, family):
    theirs = DiffusionPipeline.from_pretrained(checkpoints / family, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    words = {"prompt": ["a pizza", "an octopus"], "height": 96, "width": 96, "output_type": "np"}
    words |= {"num_inference_steps": 6, "guidance_scale": 3.5}
    seeds = [5, 2**33]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    own = {"max_sequence_length": 16} if family == "flux" else {}
    expected = theirs(**words, **own, generator=generators).images
    with eri.load(demos / "engines" / f"demo-{family}") as ours:
        assert np.abs(ours(**words, seed=seeds).images - expected).max() <= 1 / 255


def test_flux_listens_to_its_guidance_scale(demos):
    """And not to a second pass: what is asked for is drawn at either scale."""
    prompts, pictures = ["a pizza", "an octopus"], []
    with eri.load(demos / "engines" / "demo-flux") as pipe:
        for scale in (1.0, 6.0):
            result = pipe(prompts, num_inference_steps=12, guidance_scale=scale, seed=0)
            assert nearest_captions(result.images) == prompts
            pictures.append(np.stack([np.asarray(image, np.float64) for image in result.images]))
    assert np.abs(pictures[0] - pictures[1]).mean() > 1  # of 255; two passes alike would give 0


def test_flux_learns_from_the_velocity_of_all_drawings_together():
    """Against the definition, with each drawing's likelihood written out in float64."""
    generator = torch.Generator().manual_seed(0)
    latents = 0.3 * torch.randn(5, 4, 2, generator=generator)
    x, s = torch.randn(3, 4, 2, generator=generator), torch.tensor([0.2, 0.6, 0.95])
    got = train_flux.unconditional(x, s, latents)
    for i in range(len(x)):
        level = s[i].double()
        offsets = x[i].double() - (1 - level) * latents.double()
        likelihood = torch.exp(-offsets.square().sum(dim=(1, 2)) / (2 * level**2))
        mean = (likelihood / likelihood.sum()) @ latents.double().flatten(1)
        expected = (x[i].double() - mean.view_as(x[i])) / level
        torch.testing.assert_close(got[i].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_narrowed_autoencoder_starts_with_the_same_leading_latents():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 3, 6, 6, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(rough, 48, mode="bicubic")
    wide = AutoencoderKL.from_pretrained(checkpoint() / "vae", dtype=torch.float32)
    narrow = train_vae.narrowed(wide, images, models.SDXL_SPACE)
    with torch.no_grad():
        theirs = wide.encode(images).latent_dist
        ours = narrow.encode(images).latent_dist
    given = (theirs.mean[:, :4] - models.SD3_SPACE.shift) * models.SD3_SPACE.scale
    kept = ours.mean * models.SDXL_SPACE.scale
    ratio = (kept * given).sum() / given.square().sum()
    torch.testing.assert_close(kept, ratio * given, rtol=1e-4, atol=1e-4)
    spread = (ours.logvar - theirs.logvar[:, :4]) / 2
    expected = (ratio * models.SD3_SPACE.scale / models.SDXL_SPACE.scale).log()
    torch.testing.assert_close(spread, expected.expand_as(spread), rtol=1e-4, atol=1e-3)


def test_what_cannot_be_assembled_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match=r"'sd15'.*sdxl"):
        assemble.assemble("sd15", tmp_path / "new")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=rf"{tmp_path}.*something that exists.*another folder"):
        assemble.assemble("sdxl", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (assemble.assemble("flux", empty) / "text_encoder_2" / "config.json").is_file()
