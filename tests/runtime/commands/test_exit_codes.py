"""Exit codes: one table, and the same code for the same fault, whichever command meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eri_runtime import errors
from eri_runtime.commands.exit_codes import EXIT_CODES, FAILED, WRONG, code_of, describe_codes
from eri_runtime.commands.main import main, make_parser
from tests.docs.pages import ROOT

ERRORS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.EriError)
]


def subcommands():
    (found,) = (each.choices for each in make_parser()._actions if isinstance(each.choices, dict))
    return found


# each command with a path in the place of what it opens first
OPENS = {
    "bench": ["bench", "PATH", "--output", "OUT.json"],
    "build": ["build", "PATH", "--engine", "tensorrt-rtx", "--compute-capability", "8.9"],
    "convert": ["convert", "PATH", "-o", "OUT.safetensors"],
    "export": ["export", "PATH", "-o", "OUT"],
    "export-triton": ["export-triton", "PATH", "-o", "OUT"],
    "generate": ["generate", "PATH", "x", "-o", "OUT.png"],
    "inspect": ["inspect", "PATH"],
    "serve": ["serve", "PATH", "--port", "0", "--workers", "0"],
    "upgrade": ["upgrade", "PATH"],
}
PATHLESS = {"demo", "samplers"}  # commands that open nothing of the user's, or need not
PATHS = ("missing", "missing/deep", "text.txt", "text.safetensors", "empty", "weights.safetensors")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with files of several kinds, none of which is what a command opens."""
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "text.safetensors"):
        Path(name).write_text("this is text, and long enough\n")
    Path("empty").mkdir()
    save_file({"x": torch.zeros(1)}, "weights.safetensors")
    Path("a.png").write_bytes(b"no picture")
    return tmp_path


def run(words, capsys):
    """The exit code of a command, and what it says without the lines of what it is doing."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    doing = re.compile(r"eri: (opening|denoising|verifying|open|cold|round)\b(?!.*: got )")
    lines = captured.err.splitlines(keepends=True)
    return code, "".join(line for line in lines if not doing.match(line))


def test_every_command_is_walked():
    assert set(OPENS) | PATHLESS >= set(subcommands())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("command", OPENS)
def test_a_wrong_path_has_one_code_and_is_told_once(command, path, place, capsys):
    before = {each: each.read_bytes() for each in place.rglob("*") if each.is_file()}
    code, said = run([path if word == "PATH" else word for word in OPENS[command]], capsys)
    assert code == WRONG, said
    assert said.startswith("eri: ")
    assert said.count("\n") == 1
    assert said.count(path) >= 1
    assert said.count("expected ") == 1
    after = {each: each.read_bytes() for each in place.rglob("*") if each.is_file()}
    assert after == before


@pytest.mark.parametrize("command", OPENS)
def test_a_missing_path_is_called_missing(command, place, capsys):
    _, said = run(["gone" if word == "PATH" else word for word in OPENS[command]], capsys)
    assert re.search(r"no such (file|folder|path)", said), said
    assert "damaged" not in said


@pytest.mark.parametrize("command", [*OPENS, "demo"])
@pytest.mark.parametrize("words", [["--no-such-option"], ["a", "b", "c", "d"]])
def test_a_wrong_word_has_one_code(command, words, place, capsys):
    if command == "serve" and not words[0].startswith("-"):
        return  # it takes any number of bundles
    code, said = run([command, *words], capsys)
    assert code == WRONG, said


FAULTS = {
    "a backend that is unknown": (WRONG, ["--backend", "cuba"]),
    "an engine that is not here": (FAILED, ["--backend", "tensorrt"]),
    "a LoRA that is missing": (WRONG, ["--lora", "gone.safetensors"]),
    "a LoRA that is text": (WRONG, ["--lora", "text.safetensors"]),
    "a LoRA that fits nothing": (WRONG, ["--lora", "weights.safetensors"]),
    "a sampler that is unknown": (WRONG, ["--sampler", "nonesuch"]),
    "a picture that is missing": (WRONG, ["--image", "gone.png"]),
    "a picture that is none": (WRONG, ["--image", "a.png"]),
    "a file in the place of a folder": (WRONG, ["-o", "text.txt/x.png"]),
    "prompts that are missing": (WRONG, ["--prompts", "gone.txt", "-o", "run"]),
    "tokens that are missing": (WRONG, ["--textual-inversion", "gone.safetensors"]),
    "a size that is too large": (WRONG, ["--size", "100000x32"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_generate_has_its_code(fault, sd35_bundle, place, capsys):
    expected, words = FAULTS[fault]
    prompt = [] if "--prompts" in words else ["x"]
    code, said = run(["generate", sd35_bundle, *prompt, "--steps", "1", *words], capsys)
    assert code == expected, said
    assert said.count("\n") == 1
    assert not list(place.glob("eri-*.png"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--backends", "cuba"], WRONG),
        (["--backends", "cpu", "tensorrt"], FAILED),
        (["--torch", "eagre", "--against", "CHECKPOINT"], WRONG),
        (["--against", "gone"], WRONG),
        (["--against", "text.txt"], WRONG),
        (["--against", "empty"], WRONG),
        (["--peers", "nobody", "--against", "CHECKPOINT", "--torch"], WRONG),
        (["--output", "text.txt"], WRONG),
        (["--report", "text.txt"], WRONG),
        (["--output", "text.txt/r.json"], WRONG),
        (["--threshold", "2"], WRONG),
    ],
)
def test_bench_refuses_at_once_and_once(
    words, expected, sd35_bundle, sd35_checkpoint, place, capsys, monkeypatch
):
    def started(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("eri_runtime.bench.measured_subject.Worker", started)
    words = [str(sd35_checkpoint) if word == "CHECKPOINT" else word for word in words]
    code, said = run(["bench", sd35_bundle, *words], capsys)
    assert code == expected, said
    assert said.count("\n") == 1


def test_a_bench_whose_subject_dies_is_no_success(sd35_bundle, tmp_path, capsys, monkeypatch):
    """The others are measured and written; the code and the last line say what is missing."""
    monkeypatch.setattr("eri_runtime.bench.plan.OURS", "tests.support.no_such_worker")
    words = ["bench", sd35_bundle, "--backends", "cpu", "--steps", "1", "--rounds", "1"]
    code, said = run([*words, "--cold", "0", "--output", tmp_path / "r.json"], capsys)
    assert code == FAILED
    assert "eri: 1 of 1 subjects: got eri/cpu: " in said.splitlines()[-1]
    assert (tmp_path / "r.json").is_file()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_a_code_follows_from_the_class(error):
    made = error("x", got="y", expected="z")
    wrong = (
        errors.UsageError,
        errors.CheckpointError,
        errors.BundleError,
        errors.LoraError,
    )
    assert code_of(made) == (WRONG if isinstance(made, wrong) else FAILED)


def test_the_table_stands_in_every_help_and_in_the_docs(capsys):
    for words in ([], *([name] for name in subcommands())):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code == 0
        assert " ".join(describe_codes().split()) in " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", page, flags=re.MULTILINE))
    assert rows == {str(code): text for code, text in EXIT_CODES.items()}


@pytest.mark.parametrize("words", [["inspect", "BUNDLE"], ["--help"], ["generate", "--help"]])
def test_a_reader_that_leaves_early_is_silent(words, sd35_bundle):
    read, write = os.pipe()
    os.close(read)
    words = [str(sd35_bundle) if word == "BUNDLE" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "eri_runtime", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    said = [line for line in done.stderr.splitlines() if not line.startswith(b"eri: ")]
    assert (done.returncode, said) == (0, [])
