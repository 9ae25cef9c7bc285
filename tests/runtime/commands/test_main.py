"""The `eri` command: what it writes, what it says, and how it fails."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eri_export.commands.export import default_name
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.commands.main import main
from eri_runtime.commands.progress_bars import progress_bars
from eri_runtime.units import megabytes
from tests.support import single_files as made

PROGRESS = ("eri: opening ", "eri: verifying ", "eri: denoising ")
FAST = ["--steps", "2", "--size", "48x32", "--seed", "0"]


def failure(capsys, *arguments):
    """The exit status and the line that a failing command prints, after those of its progress."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    *progress, line = captured.err.splitlines(keepends=True)
    assert all(each.startswith(PROGRESS) for each in progress)
    assert line.startswith("eri: ")
    return status, line


def test_generate_writes_pngs_that_say_how_they_were_made(sd35_bundle, tmp_path, capsys):
    target = tmp_path / "new" / "heart.png"
    words = ["generate", str(sd35_bundle), "a red heart", "--negative", "blurry", *FAST]
    assert main([*words, "--batch", "2", "--guidance", "4", "-o", str(target)]) == 0
    files = [target.with_stem(f"heart-{i}") for i in range(2)]
    assert capsys.readouterr().out == "".join(f"{p}  seed {i}\n" for i, p in enumerate(files))
    assert sorted(target.parent.iterdir()) == files
    for seed, path in enumerate(files):
        with Image.open(path) as image:
            assert image.size == (48, 32)
            prompt, negative, settings = image.text["parameters"].splitlines()
        assert (prompt, negative) == ("a red heart", "Negative prompt: blurry")
        start = f"Steps: 2, Sampler: Euler, CFG scale: 4, Seed: {seed}, Size: 48x32, Model hash: "
        assert settings.startswith(start)


def test_without_a_name_nothing_is_overwritten(sd35_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for batch in ("1", "2", "1"):
        assert main(["generate", str(sd35_bundle), "x", *FAST, "--batch", batch]) == 0
    names = ["eri-0.png", "eri-0_2-0.png", "eri-0_2-1.png", "eri-0_3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_the_same_seed_gives_the_same_file(sd35_bundle, tmp_path):
    pixels = []
    for name in ("a.png", "b.png"):
        words = ["generate", str(sd35_bundle), "a red heart", *FAST, "-o", str(tmp_path / name)]
        assert main(words) == 0
        pixels.append(np.asarray(Image.open(tmp_path / name)))
    np.testing.assert_array_equal(*pixels)


def test_inspect_says_what_is_there_and_what_can_run_it(sd35_bundle, capsys):
    assert main(["inspect", str(sd35_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sd35" in lines[0]
    assert "all verified" in lines[0]
    starts = [line.partition(":")[0] for line in lines]
    for name in ("denoiser", "vae_decoder", "vae_encoder", "text_encoder_3", "tokenizer_3"):
        assert name in starts
    assert any(line.startswith("backend cpu: can run it here; CPUExecution") for line in lines)


@pytest.mark.parametrize("word", ["export", "generate", "inspect", "demo"])
def test_every_command_has_help(word, capsys):
    with pytest.raises(SystemExit) as stop:
        main([word, "--help"])
    assert stop.value.code == 0
    assert f"eri {word}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["nonsense"], ["generate", "b", "p", "--size", "big"]],
)
def test_a_bad_command_line_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert re.fullmatch(r"see `eri( \w+)? --help`", said[1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--size", "50x32"], "width: got 50, expected a positive multiple of 8; 48 and 56"),
        (["--sampler", "eulr"], "sampler: got 'eulr', expected a sampler of flow schedules"),
        (["--steps", "0"], "num_inference_steps: got 0, expected 1 to 1000"),
        (["--guidance", "nan"], "guidance_scale: got nan"),
        (["--seed", "-1"], "seed: got -1"),
        (["--batch", "0"], "num_images_per_prompt: got 0"),
        (["--backend", "cuba"], "backend: got 'cuba', expected auto or one of tensorrt"),
        (["--threads", "0"], "threads: got 0, expected auto or an integer, 1 to 1024"),
        (["--eta", "0.5"], "eta: got 0.5 with flow_euler"),
        (["-o", "heart.jpg"], "--output: got heart.jpg"),
    ],
)
def test_a_bad_value_is_one_line_and_status_2(
    words, expected, sd35_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, line = failure(capsys, "generate", sd35_bundle, "a red heart", *words)
    assert status == 2
    assert expected in line
    assert list(tmp_path.iterdir()) == []


def test_a_size_beyond_the_bundles_range_is_refused(sd35_bundle, tmp_path, capsys):
    out = tmp_path / "x.png"
    status, line = failure(capsys, "generate", sd35_bundle, "x", "--size", "4096x32", "-o", out)
    assert status == 2
    assert "width: got 4096, expected 8 to 128, as it was exported" in line
    assert not out.exists()


def test_a_path_that_is_no_bundle_says_the_way_out(tmp_path, capsys):
    for path in (tmp_path / "missing", tmp_path):
        status, line = failure(capsys, "generate", path, "x")
        assert status == 2
        assert "eri export CHECKPOINT" in line


def test_a_bundle_with_a_wrong_hash_is_refused(sd35_bundle, tmp_path, capsys):
    copy = shutil.copytree(sd35_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["denoiser/model.onnx"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for command in (["generate", copy, "x"], ["inspect", copy]):
        status, line = failure(capsys, *command)
        assert status == 2
        assert "denoiser/model.onnx: got sha256" in line


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_exporting_a_pickle_is_refused_unread(name, tmp_path, capsys):
    source = tmp_path / name
    source.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    status, line = failure(capsys, "export", source, "-o", tmp_path / "out")
    assert status == 2
    assert name in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_exporting_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    for source in (tmp_path / "missing", tmp_path):
        status, line = failure(capsys, "export", source, "-o", tmp_path / "out")
        assert status == 2
        assert str(source) in line
    assert list(tmp_path.iterdir()) == []


# eri export


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("models/flux", "flux"),
        ("models/flux.1-dev/", "flux.1-dev"),
        ("flux1-dev.safetensors", "flux1-dev"),
        ("owner/FLUX.1-dev", "FLUX.1-dev"),
        ("owner/name:folder/sd3.5_large.safetensors", "sd3.5_large"),
    ],
)
def test_a_bundle_is_called_as_its_checkpoint(checkpoint, name):
    assert default_name(checkpoint) == name


def test_an_export_says_where_how_large_how_long_and_how_close(
    flux_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(flux_checkpoint)]) == 0
    captured = capsys.readouterr()
    stages = captured.err.splitlines()  # a line each where there is no terminal
    assert stages[0] == f"eri: opening {flux_checkpoint}"
    assert {f"eri: denoiser: {stage}" for stage in ("trace", "write", "compare")} <= set(stages)
    assert len(stages) == len(set(stages)) == 1 + 5 * 3 + 1
    bundle = manifest.read(tmp_path / "engines" / flux_checkpoint.name)
    first, second, third = captured.out.splitlines()
    size = f"5 components, {len(bundle.files)} files, {megabytes(bundle.size)}"
    assert first == f"engines/{flux_checkpoint.name}  flux, {size}"
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,.]*\d", second)]
    total, trace, write, compare, publish, peak = numbers
    assert 0 < trace + write + compare + publish <= total + 0.2  # each is rounded
    assert peak > 100
    worst = max(component.parity for component in bundle.components.values())
    assert f"worst error against PyTorch {worst:.1e}" in third


def test_the_options_of_an_export_reach_the_bundle(flux_checkpoint, tmp_path, capsys, caplog):
    state = made.weights(flux_checkpoint / "transformer")
    file = made.written(tmp_path / "flux.safetensors", made.bfl_flux(state))
    words = ["--config", flux_checkpoint, "--vae", flux_checkpoint / "vae"]
    words += ["--text-encoders", flux_checkpoint / "text_encoder_2"]
    words += ["--size", "32:48:64", "--batch", "1:1:2", "--tokens", "16", "-v"]
    with caplog.at_level(logging.NOTSET):
        words = ["export", file, *words, "-o", tmp_path / "out"]
        assert main([str(word) for word in words]) == 0
    bundle = manifest.read(tmp_path / "out")
    assert set(bundle.components) == {"denoiser", "vae_decoder", "vae_encoder", "text_encoder_2"}
    ranges = bundle.components["vae_decoder"].ranges
    assert ranges["batch"] == ShapeRange(min=1, opt=1, max=2)
    factor = bundle.latents.factor
    sides = ShapeRange(min=32 // factor, opt=48 // factor, max=64 // factor)
    assert ranges["height"] == ranges["width"] == sides
    assert bundle.components["text_encoder_2"].ranges["tokens"].opt == 16
    assert "text_encoder_2: relative error" in caplog.text
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}  flux, 4 components")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_stopped_says_so_and_leaves_nothing(number, flux_checkpoint, tmp_path):
    command = [
        sys.executable,
        "-m",
        "eri_runtime",
        "export",
        flux_checkpoint,
        "-o",
        "out",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        while running.poll() is None and not list(tmp_path.glob(".out.*.partial/*")):
            time.sleep(0.01)
        running.send_signal(number)
        _, said = running.communicate()
    assert running.returncode == 130
    *stages, line = said.splitlines()
    assert line == "eri: stopped"
    assert all(each.startswith("eri: ") for each in stages)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_drawn_on_a_terminal_and_lines_elsewhere(terminal, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with progress_bars() as advance:
        advance("denoiser", 1, 1, doing="trace")
        for done in (0, 1_500_000, 3_000_000):
            advance("denoiser", done, 3_000_000, doing="write", unit="bytes")
        advance("denoising", 7, 20)
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    if not terminal:
        lines = ["denoiser: trace", "denoiser: write", "denoising 20 steps"]
        assert stream.getvalue() == "".join(f"eri: {line}\n" for line in lines)
        return
    assert re.search(r"denoiser +write .*3\.0 MB of 3\.0 MB", drawn)
    assert re.search(r"denoising .*7/20", drawn)
