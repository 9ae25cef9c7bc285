"""The folder that all workers share is written by one worker at a time."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.once import once

TESTS = Path(__file__).parents[1]
# what makes a thing once for all workers
SAFE = {"once", "cached", "Exports"}


def functions():
    """Every function of the tests that takes the shared folder."""
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if "workshop" in {each.arg for each in node.args.args}:
                yield f"{file.relative_to(TESTS)}: {node.name}", node


def test_nothing_writes_into_the_shared_folder_by_itself():
    """Two workers that run tests of one module wrote the same file and spoilt it."""
    found = dict(functions())
    for name, node in found.items():
        calls = {
            each.func.id
            for each in ast.walk(node)
            if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
        }
        assert calls & SAFE, name
    assert len(found) > 3


def test_it_is_made_once_whoever_asks(tmp_path):
    made = []

    def make(path):
        made.append(path)
        path.write_text("made")

    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: once(tmp_path / "file", make), range(32)))
    assert paths == {tmp_path / "file"}
    assert len(made) == 1
