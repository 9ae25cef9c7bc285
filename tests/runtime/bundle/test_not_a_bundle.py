"""What a path that is no bundle is instead, and the command that helps."""

from __future__ import annotations

import re
import shlex

import pytest

from eri_runtime.bundle import read_bundle
from eri_runtime.commands.main import make_parser
from eri_runtime.errors import NotABundleError


def refused(path):
    with pytest.raises(NotABundleError) as caught:
        read_bundle(path)
    for command in re.findall(r"`eri ([^`]*)`", str(caught.value)):
        assert make_parser().parse_args(shlex.split(command)).run
    return str(caught.value)


@pytest.mark.parametrize("name", ["my model.safetensors", "a.gguf", "b.ckpt", "folder", "files"])
def test_a_checkpoint_is_recognised_and_its_export_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if "." in name:
        path.touch()
    else:
        path.mkdir()
        (path / ("model_index.json" if name == "folder" else "x.safetensors")).touch()
    said = refused(name)
    target = shlex.quote(f"engines/{path.stem}")
    assert f"{name}: got a checkpoint" in said
    assert f"`eri export {shlex.quote(name)} -o {target}`" in said


def test_a_bundle_of_a_similar_name_is_asked_for(sd35_bundle, tmp_path):
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "emoji").symlink_to(sd35_bundle)
    assert refused(engines / "emojy").endswith(f"did you mean {engines / 'emoji'}?")
    assert refused(engines).endswith(f"got no manifest.json, expected the folder of a bundle; "
                                     f"did you mean {engines / 'emoji'}?")  # fmt: skip
    other = refused(engines / "wholly different")
    assert "no such folder" in other
    assert "did you mean" not in other


def test_what_is_nothing_of_the_kind(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert "notes.txt: got a file, expected the folder" in refused(tmp_path / "notes.txt")
    assert "eri export CHECKPOINT -o engines/empty" in refused(tmp_path / "empty")
    assert f"eri export CHECKPOINT -o {tmp_path / 'new'}" in refused(tmp_path / "new")
