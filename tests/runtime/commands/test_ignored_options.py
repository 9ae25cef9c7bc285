"""An option that would change nothing is an error that says why."""

from __future__ import annotations

import pytest
from PIL import Image

from eri_runtime.commands.main import main, make_parser
from eri_runtime.errors import UsageError
from eri_runtime.memory import MemoryEfficientSamplingConfig

FAST = ["--steps", "1", "--size", "32x32", "--seed", "0", "-o", "x.png"]
IGNORED = {
    "sd35": [
        (["--true-cfg", "3"], "--true-cfg: got a bundle of sd35"),
        (["--guidance", "1", "--negative", "x"], "--negative: got a call without CFG"),
        (
            ["--guidance", "1", "--guidance-rescale", "0.5"],
            "--guidance-rescale: got a call",
        ),
        (["--guidance", "1", "--guidance-interval", "0:1"], "--guidance-interval: got a call"),
        (["--bypass-guidance", "--guidance", "3"], "--guidance: got --bypass-guidance"),
        (["--bypass-guidance", "--negative", "x"], "--negative: got a call without CFG"),
        (["--step-cache-threshold", "0.1"], "--step-cache-threshold: got no --step-cache"),
        (["--lora-partial"], "--lora-partial: got no --lora"),
        (["--force"], "--force: got one PROMPT"),
        (["--strength", "0.5"], "strength: got"),
        (["--mask", "in.png"], "mask: got"),
        (["--overlay"], "overlay: got"),
        (["--padding-mask-crop", "4"], "padding_mask_crop: got"),
        (["--eta", "0.5"], "eta: got"),
        (["--option", "s_churn=3"], "s_churn"),
    ],
    "flux": [
        (["--negative", "x"], "--negative: got a call without CFG"),
        (["--true-cfg", "3"], "--true-cfg: got a call without CFG"),
        (["--guidance-rescale", "0.5"], "--guidance-rescale: got a call without CFG"),
    ],
}


@pytest.mark.parametrize(
    ("family", "words", "told"),
    [(family, *each) for family, cases in IGNORED.items() for each in cases],
)
def test_an_option_without_effect_is_refused(
    family, words, told, request, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "white").save("in.png")
    bundle = str(request.getfixturevalue(f"{family}_bundle"))
    capsys.readouterr()  # of making it
    assert main(["generate", bundle, "x", *FAST, *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count(": got ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("flux", ["--negative", "x", "--true-cfg", "3"]),
        ("sd35", ["--negative", "x", "--guidance", "3", "--guidance-rescale", "0.5"]),
        ("sd35", ["--bypass-guidance"]),
    ],
)
def test_the_same_option_with_effect_runs(family, words, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = str(request.getfixturevalue(f"{family}_bundle"))
    assert main(["generate", bundle, "x", *FAST, *words]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "CHECKPOINT", "--lora-partial"], "--lora-partial: got no --lora"),
        (["export", "CHECKPOINT", "--compute-capability", "8.9"], "--compute-capability: got"),
        (["inspect", "BUNDLE", "--batch", "2"], "--size and --batch: got no --memory"),
        (["bench", "BUNDLE", "--threshold", "2"], "--threshold: got a measurement"),
        (["bench", "--compare", "a", "b", "--rounds", "2"], "--rounds: got --compare"),
        (["bench", "--render", "a", "--output", "b"], "--output: got --render"),
        (["bench", "BUNDLE", "--time-export"], "--torch: got no --against"),
        (["serve", "BUNDLE", "--replicas", "2"], "--replicas: got no --ray"),
        (["serve", "BUNDLE", "--gpus", "1"], "--gpus: got no --ray"),
    ],
)
def test_options_of_other_commands(words, told, sd35_bundle, sd35_checkpoint, capsys):
    paths = {"BUNDLE": str(sd35_bundle), "CHECKPOINT": str(sd35_checkpoint)}
    assert main([paths.get(word, word) for word in words]) == 2
    assert told in capsys.readouterr().err


def test_a_tile_without_tiling_is_refused():
    with pytest.raises(UsageError, match="tile_size: got 64 without enable_vae_tiling"):
        MemoryEfficientSamplingConfig(tile_size=64)
    assert MemoryEfficientSamplingConfig(tile_size=64, enable_vae_tiling=True).tile_size == 64


def test_a_tile_of_the_command_turns_tiling_on():
    options = make_parser().parse_args(["generate", "b", "x", "--vae-tile", "64"])
    from eri_runtime.commands.memory_options import memory_keywords

    assert memory_keywords(options)["memory"].mode.vae.tile == 64
