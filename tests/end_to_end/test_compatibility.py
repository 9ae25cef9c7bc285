"""What was public in version 0.1.0 still is: names, commands, options, bundles, run folders.

`tests/data/compatibility` was made by that version, before its modules moved.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from pathlib import Path

import pytest

import eri_runtime as eri
from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main, make_parser

OLD = Path(__file__).parents[1] / "data" / "compatibility"


def read(name):
    return json.loads((OLD / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", ["eri_runtime", "eri_export"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert set(read("names.json")[package]) <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_command_takes_its_options():
    commands = next(
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for name, words in read("options.json").items():
        actions = commands.choices[name]._actions
        known = {
            text for action in actions for text in action.option_strings or [action.dest.upper()]
        }
        assert set(words) <= known, name


def test_an_old_manifest_is_read_and_written_back_unchanged():
    """Whatever a bundle says of itself is kept, to the last digit."""
    bundle = eri.read_bundle(OLD)
    assert json.loads(manifest.dump(bundle)) == read("manifest.json")


def test_an_old_bundle_is_the_one_that_is_exported_today(demo_bundle):
    """The embedded checkpoint: the same weights files to the bit, the same graphs' interfaces.

    Graphs of the same names are there. Their nodes may be others that compute the same, as since
    the position of CLIP's end token and `magnitude` have operators that CUDA has.
    """
    old, new = eri.read_bundle(OLD), eri.read_bundle(demo_bundle)
    assert new.components.keys() == old.components.keys()
    for name, spec in old.components.items():
        assert new.files[spec.weights].sha256 == old.files[spec.weights].sha256
        today = new.components[name]
        assert (today.inputs, today.outputs) == (spec.inputs, spec.outputs)
        assert today.ranges == spec.ranges
        assert [each.graph for each in today.segments] == [each.graph for each in spec.segments]
    assert old.files.keys() <= new.files.keys()
    assert (new.schedule, new.latents, new.defaults) == (old.schedule, old.latents, old.defaults)


def test_an_old_run_is_resumed_and_nothing_is_drawn_again(demo_bundle, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(OLD / "run", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red heart\na pizza\n", encoding="utf-8")
    words = ["--steps", "2", "--seed", "5", "--size", "96x96", "-o", str(folder)]
    assert main(["generate", str(demo_bundle), "--prompts", str(prompts), *words]) == 0
    assert "0 done, 2 kept" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
