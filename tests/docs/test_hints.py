"""The ways out that messages name exist: commands, their options, extras and packages.

Walks every text in the code that is no docstring, so that a new message is covered when it is
written.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import eri_export
import eri_runtime
from eri_runtime import install_hint as hints
from eri_runtime.commands.main import make_parser
from eri_runtime.install_hint import install_hint
from tests.docs.pages import ROOT

OWN_OPTIONS = {  # programs of their own, and two that call others
    ("embedded", "train.py"),
    ("embedded", "style_lora.py"),
    ("embedded", "tiny_demo.py"),
    ("bench", "environment.py"),
    ("bench", "optimum_worker.py"),
}
FILES = sorted(
    file
    for package in (eri_runtime, eri_export)
    for file in Path(package.__file__).parent.rglob("*.py")
    if file.parts[-2:] not in OWN_OPTIONS
)
OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]*[a-z]")
COMMAND = re.compile(r"`eri ([a-z-]+)([^`]*)`")
PIP = re.compile(r"pip install ([^\s,;)]+)")
OTHERS = {  # options of other programs that our texts name
    "--model-repository",
    "--upgrade",
    "--type",  # Chromium's
}
# packages of other projects, which pip finds on its index
PACKAGES = {"wandb", "huggingface_hub", "gguf", "tensorrt", "cuda-bindings"}


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of all subcommands, by name."""
    (found,) = (each.choices for each in make_parser()._actions if isinstance(each.choices, dict))
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of one subcommand."""
    return {option for action in parser._actions for option in action.option_strings}


COMMANDS = {name: options_of(parser) for name, parser in subcommands().items()}
KNOWN = set().union(options_of(make_parser()), *COMMANDS.values()) | OTHERS


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """The line and the text of every string in a file but its docstrings; `…` stands for values."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            skipped.update(map(id, parts))
            yield (
                node.lineno,
                "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts),
            )
        elif isinstance(getattr(node, "value", None), str) and id(node) not in skipped:
            yield node.lineno, node.value


def faults(text: str) -> Iterator[str]:
    """What a text names and nobody has."""
    for name, rest in COMMAND.findall(text):
        if "…" in name:
            continue
        if name not in COMMANDS:
            yield f"no command eri {name}"
        else:
            yield from (
                f"eri {name} has no {option}"
                for option in OPTION.findall(rest)
                if option not in COMMANDS[name]
            )
    yield from (f"no option {option}" for option in OPTION.findall(text) if option not in KNOWN)
    yield from (f"no package {name}" for name in PIP.findall(text) if not _installs(name))


def _installs(name: str) -> bool:
    """Whether pip can follow a line: a package of an index, an extra of a clone, or a value."""
    return name in PACKAGES or name.startswith(("'.[", "…", "--"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_message_names_exists(file):
    found = [f"line {line}: {fault}" for line, text in texts(file) for fault in faults(text)]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "run `eri exprt X`",
        "run `eri build BUNDLE --precision fp16`",
        "leave it out with --without-it",
        "pip install 'eri-diffusion[cpu]'",
    ],
)
def test_a_hint_that_leads_nowhere_is_found(text):
    assert list(faults(text))


def test_every_extra_that_a_hint_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    named = {
        extra
        for file in FILES
        for extra in re.findall(r"install_hint\(['\"](\w+)['\"]", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 4
    assert named <= extras


def test_a_hint_names_the_clone_that_pip_can_install_from(tmp_path, monkeypatch):
    assert install_hint("cpu") == f"`pip install '{ROOT}[cpu]'`"
    clone = tmp_path / "a clone"
    monkeypatch.setattr(hints, "CLONE", clone)
    assert install_hint("cpu") == "`pip install '.[cpu]'` in a clone of eri"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    assert install_hint("gpu", upgrade=True) == f"`pip install --upgrade '{clone}[gpu]'`"
