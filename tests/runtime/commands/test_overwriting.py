"""No command replaces a file in silence: it refuses, or the line that reports the file says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from eri_export.commands import export as command
from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main

FAST = ["--steps", "1", "--size", "32x32", "--seed", "0"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_picture_that_is_replaced_is_said(sd35_bundle, place, capsys):
    words = ["generate", str(sd35_bundle), "x", *FAST, "-o", "x.png"]
    said = []
    for more in ([], [], ["--batch", "2"]):
        assert main([*words, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[:2] == ["x.png  seed 0\n", "x.png  seed 0, replaced\n"]
    assert said[2] == "x-0.png  seed 0\nx-1.png  seed 1\n"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replaced"] == ["x.png"]


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_a_picture_that_is_read_is_never_replaced(option, sd35_bundle, place, capsys):
    for name, mode in (("in.png", "RGB"), ("mask.png", "L")):
        Image.new(mode, (32, 32), "white").save(name)
    before = files(place)
    target = "in.png" if option == "--image" else "./mask.png"
    words = ["generate", str(sd35_bundle), "x", *FAST, "--image", "in.png", "--mask", "mask.png"]
    words[words.index("--steps") + 1] = "2"
    assert main([*words, "-o", target]) == 2
    assert "which the command reads, expected another file" in capsys.readouterr().err
    assert files(place) == before


def test_a_bundle_is_replaced_by_force_alone(
    sd35_bundle, sd35_checkpoint, place, capsys, monkeypatch
):
    bundle = shutil.copytree(sd35_bundle, place / "engines" / sd35_checkpoint.name)
    exported = []
    monkeypatch.setattr(
        command, "run_export", lambda target, *_, **__: exported.append(target) or {}
    )
    before = files(place)
    assert main(["export", str(sd35_checkpoint)]) == 2
    said = capsys.readouterr().err
    assert f"engines/{bundle.name}: got a bundle, expected a new name; add --force" in said
    assert (files(place), exported) == (before, [])
    assert main(["export", str(sd35_checkpoint), "--force"]) == 0
    assert exported == [bundle.relative_to(place)]


def test_a_dry_run_says_that_a_bundle_is_there(sd35_bundle, sd35_checkpoint, capsys):
    assert main(["export", str(sd35_checkpoint), "-o", str(sd35_bundle), "--dry-run"]) == 0
    assert "replacing the bundle there, with --force" in capsys.readouterr().out


def test_results_are_replaced_by_force_alone(sd35_bundle, place, capsys):
    words = ["bench", str(sd35_bundle), "--backends", "cpu", "--steps", "1", "--rounds", "1"]
    words += ["--cold", "0", "--sizes", "32x32", "--prompt", "x", "-o", "r.json"]
    assert main(words) == 0
    before = files(place)
    assert main([*words, "--report", "r.html"]) == 2
    assert "--output r.json: got a file that exists" in capsys.readouterr().err
    assert files(place) == before
    assert main([*words, "--force"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "r.json  replaced"
    for last in ("r.html", "r.html  replaced"):  # a report can be rendered again at any time
        assert main(["bench", "--render", "r.json", "--report", "r.html"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == last


# the last line of an export


def with_precision(bundle, precision, **more):
    components = {
        name: dataclasses.replace(spec, precision=precision, **more)
        for name, spec in bundle.components.items()
    }
    return dataclasses.replace(bundle, components=components)


def test_a_bundle_that_nothing_here_can_run_says_so(sd35_bundle, monkeypatch):
    from eri_export.commands.usable_backends import planned_line, usable_line
    from eri_runtime.executors import BACKENDS, choice

    bundle = manifest.read(sd35_bundle)
    assert usable_line(bundle) is None
    narrow = with_precision(bundle, "bf16", compared={})
    for name in set(BACKENDS) - {"cpu"}:
        monkeypatch.setitem(BACKENDS, name, BACKENDS["tensorrt"])
    said = usable_line(narrow)
    assert said.startswith("no backend here can run it (")
    assert "cpu: ONNX Runtime's CPU kernels have no bfloat16" in said
    assert said.endswith("; `--precision fp16` would run")
    monkeypatch.setitem(BACKENDS, "openvino", choice.OPENVINO)
    assert "name one, as `--backend openvino`" in usable_line(narrow)
    assert planned_line(narrow) is None  # compared, auto will take OpenVINO


def test_an_export_ends_with_that_line(sd35_bundle, sd35_checkpoint, place, capsys, monkeypatch):
    def copied(target, *_, **__):
        shutil.copytree(sd35_bundle, target)
        return {}

    monkeypatch.setattr(command, "run_export", copied)
    monkeypatch.setattr(command, "usable_line", lambda bundle: f"no backend for {bundle.family}")
    assert main(["export", str(sd35_checkpoint), "-o", "new"]) == 0
    assert capsys.readouterr().out == "no backend for sd35\n"
    assert Path("new/manifest.json").is_file()
