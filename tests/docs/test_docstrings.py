"""Examples in docstrings are true, if written with `>>>`; those that need files are not run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import eri_runtime as eri

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [
    path
    for package in ("eri_runtime", "eri_export")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def module_name(path: Path) -> str:
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    """An open tiny SD3.5 pipeline, which every example may use."""
    with eri.load(sd35_bundle) as pipe:
        yield pipe


@pytest.mark.parametrize("module", [module_name(path) for path in FILES])
def test_the_examples_of_a_module_run(module, pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder().find(importlib.import_module(module), module):
        test.globs |= {"eri": eri, "np": np, "pipe": pipe}
        runner.run(test)
    pipe.unload_loras()
    pipe.reset_weights()
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_there_are_examples():
    assert {"eri_runtime.pipeline.pipeline"} <= set(map(module_name, FILES))
