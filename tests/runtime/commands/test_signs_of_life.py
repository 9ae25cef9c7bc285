"""What a command says at once, and how it says it: paths first, lines, JSON, help, hints."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import eri_runtime
from eri_runtime.bundle import Verify
from eri_runtime.commands import generate_options, memory_options
from eri_runtime.commands.main import main, make_parser
from eri_runtime.memory import TILE
from eri_runtime.sampling import PERCENTILE, SAMPLERS

ROOT = Path(eri_runtime.__file__).parents[1]
FAST = ["--steps", "2", "--size", "32x32", "--seed", "7"]
BUDGET = 0.5  # seconds of CPU for a mistyped path
MARGIN = 2.0  # for a machine that others load, where the same work takes more of them

# runs the command, then prints which of these it has imported
LOADED = """
import sys
from eri_runtime.commands.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print(*sorted({"torch", "numpy", "diffusers", "onnxruntime"} & sys.modules.keys()))
sys.exit(status)
"""


def run(*words):
    """Runs a command in a process; returns its status, its output and its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return done.returncode, done.stdout.split(), done.stderr, seconds


@pytest.mark.parametrize(
    "words",
    [
        ["export", "models/nope"],
        ["export", "nope/nope.safetensors"],
        ["export", ".", "--vae", "nope.safetensors"],
        ["export", ".", "--text-encoders", "nope.safetensors"],
        ["export", ".", "-o", "."],
        ["export", ".", "--precision", "fp17"],
        ["generate", "nope", "a"],
        ["generate", "nope", "a", "-o", "a.jpg"],
        ["generate", ".", "a", "--image", "nope.png"],
        ["generate", ".", "a", "--mask", "nope.png"],
        ["generate", ".", "a", "--lora", "nope.safetensors:0.5"],
        ["generate", ".", "a", "--textual-inversion", "nope.safetensors"],
        ["generate", ".", "--prompts", "nope.txt", "-o", "out"],
        ["inspect", "nope"],
        ["samplers", "nope"],
        ["bench", "nope"],
        ["build", "nope", "--engine", "tensorrt-rtx"],
        ["upgrade", "nope"],
        ["export-triton", "nope", "-o", "x"],
    ],
    ids=" ".join,
)
def test_a_mistyped_path_fails_before_torch_is_imported(words, tmp_path, monkeypatch):
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    if words[:2] == ["export", "models/nope"]:
        words = ["export", "models/nope/"]
    status, loaded, said, seconds = run(*words)
    assert status == 2
    assert said.startswith("eri: ")
    assert said.count("\n") == 1
    assert not {"torch", "diffusers", "onnxruntime"} & set(loaded)
    assert seconds < BUDGET * MARGIN


@pytest.mark.parametrize("command", ["generate", "inspect", "bench"])
def test_the_options_of_a_command_are_read_without_numpy(command):
    status, loaded, said, _ = run(command, "--stpes", "3")
    assert status == 2
    assert "unknown option --stpes" in said or "required" in said
    assert loaded == []


def test_an_opening_is_said_before_numpy_is_imported(sd35_bundle):
    """And so within a fraction of a second."""
    code = "import sys; from eri_runtime.commands.output import Output\n"
    code += "Output().note_opening(sys.argv[1]); print('numpy' in sys.modules)"
    command = [sys.executable, "-c", code, str(sd35_bundle)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", f"eri: opening {sd35_bundle}\n")


# -q, -v, --json


def test_generate_says_what_it_does_or_is_quiet(sd35_bundle, tmp_path, capsys):
    words = ["generate", str(sd35_bundle), "a", *FAST, "-o", str(tmp_path / "a.png")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == f"eri: opening {sd35_bundle}\neri: denoising 2 steps\n"
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr() == (said.out.replace("\n", ", replaced\n"), "")


def test_generate_prints_one_json_object(sd35_bundle, tmp_path, capsys):
    target = tmp_path / "a.png"
    words = ["generate", str(sd35_bundle), "a", *FAST, "--batch", "2", "-o", str(target), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [str(target.with_stem(f"a-{i}")) for i in range(2)]
    assert all(Path(file).is_file() for file in facts["files"])
    assert facts["seeds"] == [7, 8]
    assert facts["seconds"].keys() == {"open", "generate", "total"}
    parts = facts["seconds"]["open"] + facts["seconds"]["generate"]
    assert 0 < parts <= facts["seconds"]["total"] + 0.002


def test_many_prompts_print_one_json_object(sd35_bundle, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    words = ["generate", str(sd35_bundle), "--prompts", str(prompts), *FAST]
    words += ["-o", str(tmp_path / "out"), "--json"]
    for kept in (0, 2):
        assert main(words) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (len(facts["files"]), len(facts["seeds"])) == (2 - kept, 2 - kept)
        assert (facts["kept"], facts["failed"]) == (kept, [])


def test_inspect_prints_one_json_object(sd35_bundle, capsys):
    assert main(["inspect", str(sd35_bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "sd35"
    assert facts["components"]["denoiser"]["precision"] == "fp32"
    assert facts["backends"]["cpu"] == {"runs": True, "reasons": []}
    assert main(["inspect", str(sd35_bundle), "--memory", "--json", "-q"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["memory"]
    assert said.err == ""


def test_a_dry_run_prints_one_json_object(flux_checkpoint, tmp_path, capsys):
    target = tmp_path / "out"
    assert main(["export", str(flux_checkpoint), "-o", str(target), "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "flux"
    assert facts["bytes"] == sum(each["bytes"] for each in facts["components"].values())
    assert facts["estimate"] > 0


def test_an_export_prints_one_json_object(flux_checkpoint, tmp_path, capsys):
    target = tmp_path / "out"
    assert main(["export", str(flux_checkpoint), "-o", str(target), "--json", "-q"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert said.err == ""
    assert facts["bundle"] == str(target)
    assert all(Path(file).is_file() for file in facts["files"])
    stages = {"trace", "write", "compare", "publish"}
    assert facts["seconds"].keys() == {*stages, "total"}
    assert sum(facts["seconds"][stage] for stage in stages) <= facts["seconds"]["total"]


# versions, help and hints


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"eri {eri_runtime.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", eri_runtime.__version__)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["genrate"], "eri: no command 'genrate'; did you mean generate?"),
        (["nonsense"], "eri: no command 'nonsense'; there are "),
        (["--versoin"], "eri: unknown option --versoin; did you mean --version?"),
        (["generate", "b", "p", "--stpes=3"], "unknown option --stpes; did you mean --steps?"),
        (["inspect", "b", "--memroy"], "unknown option --memroy; did you mean --memory?"),
        (["export", "c", "--precison", "x"], "eri export: unknown option --precison; did you mean"),
        (["generate", "b", "a", "red", "heart"], "unexpected 'red' 'heart'; put quotes around"),
        (["generate", "b", "p", "--verify", "frist"], "did you mean first?"),
        (["bench", "b", "--device", "cdua"], "did you mean cuda?"),
        (["inspect"], "the following arguments are required: BUNDLE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_is_two_lines_with_what_was_meant(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert hint in first
    assert second.startswith("see `eri ")
    assert said.out == ""


def subcommands():
    """The parser of each subcommand, by name."""
    (choices,) = (
        action.choices
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return choices


def test_a_command_alone_parses_as_among_the_others():
    for name, parser in subcommands().items():
        (alone,) = (
            action.choices[name]
            for action in make_parser(name)._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        assert alone.format_help() == parser.format_help()


def test_every_option_with_a_value_says_its_default():
    """Or that it may be repeated, in which case there is none; flags are off."""
    missing = [
        f"eri {name} {action.option_strings[-1]}"
        for name, parser in subcommands().items()
        for action in parser._actions
        if action.option_strings
        and action.default not in (None, False, [], argparse.SUPPRESS)
        and action.nargs != 0
        if "default: " not in (action.help or "")
    ]
    assert missing == []


def test_the_help_of_generate_names_samplers_and_examples(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    said = capsys.readouterr().out
    assert set(SAMPLERS) <= set(said.split())
    examples = said.partition("examples:\n")[2].splitlines()
    assert len(examples) > 2
    assert all(each.startswith("  eri generate ") for each in examples)


@pytest.mark.parametrize("name", ["export", "generate", "inspect", "bench"])
def test_examples_of_the_help_parse(name):
    import shlex

    for example in subcommands()[name].examples:
        assert make_parser().parse_args(shlex.split(example)[1:]).run


def test_what_the_options_repeat_of_other_rooms_is_theirs():
    """They must not import NumPy, so the constants are there twice."""
    assert generate_options.PERCENTILE == PERCENTILE
    assert get_args(Verify) == generate_options.VERIFY
    assert memory_options.TILE == TILE
