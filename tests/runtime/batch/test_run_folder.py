"""`eri generate --prompts`: a folder that holds every image once, however often it was begun."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_runtime.batch import run_folder
from eri_runtime.batch.run_folder import KEY, MANIFEST, Run, make_entries
from eri_runtime.commands.main import main
from eri_runtime.errors import NonFiniteError, OutOfMemoryError, SizeError
from eri_runtime.request.jobs import Job
from tests.support.killed_runs import kill_often, manifest_of
from tests.support.loras import base_weights, dotted, low_rank, modules

# ONNX Runtime, of which an image has the same bits in any batch; the seed is last
FAST = ["--backend", "cpu", "--steps", "2", "--size", "48x32", "--seed", "5"]
PROMPTS = ["a red heart", "ein Apfel, rot", "心", "x"]
NAMES = [
    "00000_a-red-heart_5.png",
    "00001_ein-apfel-rot_6.png",
    "00002_082c4ae7_7.png",
    "00003_x_8.png",
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new" / "out"


@pytest.fixture
def command(sd35_bundle, prompts, folder):
    """The arguments of a run."""
    return ["generate", str(sd35_bundle), "--prompts", str(prompts), "-o", str(folder), *FAST]


@pytest.fixture
def made(command, folder, capsys):
    """A finished run, and the times of its images."""
    assert main(command) == 0
    capsys.readouterr()
    return times(folder)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def counts(command, capsys):
    """What the command says that it has done and kept."""
    assert main(command) == 0
    done, kept = re.findall(r"(\d+) done, (\d+) kept", capsys.readouterr().out)[0]
    return int(done), int(kept)


def refused(command, capsys):
    """The line of a command that is refused, after the one that says what it opens."""
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *opening, line = captured.err.splitlines(keepends=True)
    assert all(each.startswith("eri: opening ") for each in opening[:1])
    assert len(opening) <= 1
    return line


def lines_of(folder):
    return (folder / MANIFEST).read_text().splitlines(keepends=True)


def test_every_prompt_has_an_image_and_a_line(sd35_bundle, command, folder, capsys):
    assert main([*command, "--negative", "grey", "--batch", "3"]) == 0
    said = [f"{folder / name}  seed {5 + i}\n" for i, name in enumerate(NAMES)]
    assert capsys.readouterr().out == "".join(said) + f"{folder}  4 done, 0 kept\n"
    assert list(manifest_of(folder)) == NAMES
    with eri.load(sd35_bundle, "cpu") as pipe:
        size = {"width": 48, "height": 32, "num_inference_steps": 2}
        for i, (name, prompt) in enumerate(zip(NAMES, PROMPTS, strict=True)):
            expected = pipe(prompt, negative_prompt="grey", seed=5 + i, **size)
            with Image.open(folder / name) as image:
                np.testing.assert_array_equal(np.asarray(image), expected.images[0])
                assert image.text["parameters"] == expected.parameters[0]
                assert image.text[KEY] == json.loads(lines_of(folder)[1 + i])["job"]
        about, line = map(json.loads, lines_of(folder)[:2])
        weights = {
            name: pipe.bundle.files[each.weights].sha256
            for name, each in pipe.bundle.components.items()
        }
    assert about["seed"] == 5
    assert about["weights"] == weights
    assert {"prompt": "a red heart", "negative_prompt": "grey", "seed": 5}.items() <= line.items()
    assert {"height": 32, "width": 48, "num_inference_steps": 2}.items() <= line.items()


def test_a_line_has_words_of_its_own(command, prompts, folder, capsys):
    rows = prompts.with_suffix(".csv")
    rows.write_text("prompt,seed,size,steps,sampler\na,9,,,\nb,,64x64,1,flow_heun\n")
    command[3] = str(rows)
    assert counts(command, capsys) == (2, 0)
    assert list(manifest_of(folder)) == ["00000_a_9.png", "00001_b_6.png"]
    with Image.open(folder / "00001_b_6.png") as image:
        assert image.size == (64, 64)
        assert "Steps: 1, Sampler: Heun" in image.text["parameters"]


def test_what_is_whole_is_not_made_again(command, folder, made, capsys):
    before = (folder / MANIFEST).read_bytes()
    assert counts(command, capsys) == (0, 4)
    assert times(folder) == made
    assert (folder / MANIFEST).read_bytes() == before


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_line(folder, name):
    kept = [line for line in lines_of(folder) if name not in line]
    (folder / MANIFEST).write_text("".join(kept))


REDONE = {
    "missing": lambda folder, name: (folder / name).unlink(),
    "empty": lambda folder, name: (folder / name).write_bytes(b""),
    "one bit": lambda folder, name: damaged(folder / name),
    "of another job": lambda folder, name: shutil.copy(folder / NAMES[0], folder / name),
    "no line, one bit": lambda folder, name: (no_line(folder, name), damaged(folder / name)),
    "no line, of another job": lambda folder, name: (
        no_line(folder, name),
        shutil.copy(folder / NAMES[0], folder / name),
    ),
}


@pytest.mark.parametrize("how", REDONE)
def test_an_image_that_is_not_whole_is_made_again(how, command, folder, made, capsys):
    digests = manifest_of(folder)
    REDONE[how](folder, NAMES[2])
    assert counts(command, capsys) == (1, 3)
    now = times(folder)
    assert [name for name in NAMES if now[name] == made[name]] == [*NAMES[:2], NAMES[3]]
    assert manifest_of(folder) == digests


ADOPTED = {
    "no line": lambda text: text[: text.rindex(b"\n", 0, -1) + 1],
    "torn": lambda text: text[:-7],
    "half": lambda text: text[: text.rindex(b"\n", 0, -1) + 9],
    "no end": lambda text: text[:-1],
    "not JSON": lambda text: text[: text.rindex(b"\n", 0, -1) + 1] + b"\0\0\0\n",
    "not a line of ours": lambda text: text[: text.rindex(b"\n", 0, -1) + 1] + b'{"file": 3}\n',
}


@pytest.mark.parametrize("how", ADOPTED)
def test_an_image_whose_line_is_not_whole_is_adopted(how, command, folder, made, capsys):
    manifest = folder / MANIFEST
    text = manifest.read_bytes()
    manifest.write_bytes(ADOPTED[how](text))
    assert counts(command, capsys) == (0, 4)
    assert times(folder) == made
    assert manifest.read_bytes() == text


def test_partial_files_are_removed_and_others_are_not(command, folder, made, capsys):
    stale = [f".{name}.{2**22 + 1}-0123abcd.partial" for name in (NAMES[1], MANIFEST)]
    for name in (*stale, "notes.txt", ".x.partial"):
        (folder / name).touch()
    assert counts(command, capsys) == (0, 4)
    names = {path.name for path in folder.iterdir()}
    assert names == {*NAMES, MANIFEST, "notes.txt", ".x.partial"}


def test_lines_that_changed_are_drawn(command, prompts, folder, made, capsys):
    prompts.write_text("\n".join([*PROMPTS[:1], "a blue star", *PROMPTS[2:], "more"]))
    assert counts(command, capsys) == (2, 3)
    new = ["00001_a-blue-star_6.png", "00004_more_9.png"]
    assert list(manifest_of(folder)) == [NAMES[0], *NAMES[2:], *new]
    assert {name: at for name, at in times(folder).items() if name not in new} == made
    prompts.write_text("\n".join(PROMPTS))
    assert counts(command, capsys) == (0, 4)  # what was drawn before is there still
    assert sorted(manifest_of(folder)) == NAMES


@pytest.mark.parametrize("words", [["--guidance", "3"], ["--sigmas", "beta"], ["--steps", "1"]])
def test_other_words_are_other_jobs(words, command, folder, made, capsys):
    digests = manifest_of(folder)
    said = refused([*command, *words], capsys)
    assert "got an image that was drawn with other settings" in said
    assert "add --force" in said
    assert (manifest_of(folder), times(folder)) == (digests, made)
    assert counts([*command, *words, "--force"], capsys) == (4, 0)
    now = manifest_of(folder)
    assert list(now) == list(digests)
    assert not set(now.values()) & set(digests.values())


def test_a_lora_makes_other_jobs(command, folder, made, capsys, sd35_checkpoint, tmp_path):
    shapes = modules(base_weights(sd35_checkpoint)["denoiser"], "attn.to_q", "attn.to_v")
    lora = tmp_path / "style.safetensors"
    save_file(low_rank(shapes, dotted("transformer.")), lora)
    assert counts([*command, "--lora", f"{lora}:0.5", "--force"], capsys) == (4, 0)
    assert counts([*command, "--lora", f"{lora}:0.5"], capsys) == (0, 4)
    assert "other settings" in refused([*command, "--lora", f"{lora}:0.7"], capsys)


def test_a_seed_that_was_drawn_is_kept(command, prompts, folder, capsys):
    command = command[: command.index("--seed")]
    assert counts(command, capsys) == (4, 0)
    before = manifest_of(folder)
    prompts.write_text("\n".join([*PROMPTS, "more"]))
    assert counts(command, capsys) == (1, 4)
    assert list(manifest_of(folder).items())[:4] == list(before.items())
    seed = json.loads(lines_of(folder)[0])["seed"]
    assert f"00004_more_{seed + 4}.png" in manifest_of(folder)


@pytest.mark.parametrize("error", [NonFiniteError, OutOfMemoryError, SizeError])
def test_a_job_that_fails_is_named_and_the_others_are_drawn(
    error, command, prompts, folder, capsys, caplog, monkeypatch
):
    call = eri.Pipeline.__call__

    def failing(pipe, texts, *arguments, **words):
        if PROMPTS[1] in texts:
            raise error("latents after step 1", got="NaN", expected="finite numbers")
        return call(pipe, texts, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(eri.Pipeline, "__call__", failing)
        assert main(command) == 1
    assert f"{prompts}:2: latents after step 1: got NaN" in caplog.text
    out, err = capsys.readouterr()
    assert out.endswith("3 done, 0 kept\n")
    assert f"got no image of {prompts}:2, expected" in err
    assert set(manifest_of(folder)) == {*NAMES} - {NAMES[1]}
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("1 done, 3 kept\n")
    assert set(manifest_of(folder)) == {*NAMES}


def test_an_interrupt_leaves_what_can_be_gone_on_with(command, folder, capsys, monkeypatch):
    write, left = run_folder.write_png, [1, 1, 0]

    def interrupted(image, path, **options):
        if not left.pop(0):
            raise KeyboardInterrupt
        return write(image, path, **options)

    monkeypatch.setattr(run_folder, "write_png", interrupted)
    assert main(command) == 130
    assert list(manifest_of(folder)) == NAMES[:2]
    monkeypatch.undo()
    capsys.readouterr()
    assert counts(command, capsys) == (2, 2)


def test_a_full_disk_is_one_line_and_can_be_gone_on_with(command, folder, capsys, monkeypatch):
    monkeypatch.setattr(
        run_folder, "write_png", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space"))
    )
    assert main(command) == 1
    assert "no space" in capsys.readouterr().err
    monkeypatch.undo()
    assert counts(command, capsys) == (4, 0)


@pytest.mark.parametrize("terminal", [True, False])
def test_images_are_counted_on_a_terminal(terminal, command, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 0
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert bool(re.search("images .*4/4", drawn)) == terminal


# what is refused


def test_a_folder_of_another_bundle_is_refused(command, folder, made, flux_bundle, capsys):
    before = (folder / MANIFEST).read_bytes()
    command[1] = str(flux_bundle)
    line = refused(command, capsys)
    assert re.search(r"--output .*: got a run of 'sd35', expected one of 'flux', or a new", line)
    assert (folder / MANIFEST).read_bytes() == before
    assert times(folder) == made


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b'{"a": 1}\n', b'{"eri_run": 2}\n', b"\xff"]
)
def test_a_manifest_of_something_else_is_refused(content, command, folder, capsys):
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(content)
    assert f"--output {folder / MANIFEST}: got" in refused(command, capsys)
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    assert (folder / MANIFEST).read_bytes() == content


def test_two_at_once_are_refused(sd35_bundle, command, folder, capsys):
    with Run(folder, eri.read_bundle(sd35_bundle)):
        assert "got a folder that another process writes to" in refused(command, capsys)
    assert counts(command, capsys) == (4, 0)


def test_a_place_that_is_no_folder_is_refused(command, folder, capsys):
    folder.parent.mkdir()
    folder.touch()
    assert "--output: got" in refused(command, capsys)
    assert folder.read_bytes() == b""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preview", "x.png"], "--preview: got it with --prompts"),
        (["--strength", "0.5"], "prompts.txt:1: strength: got no image"),
        (["--overlay"], "prompts.txt:1: overlay: got no mask"),
        (["--also", "x"], "--also: got it with --prompts"),
        (["--batch", "99"], "batch_size: got 99"),
        (["--batch", "0"], "batch_size: got 0"),
        (["--size", "50x32"], "prompts.txt:1: width: got 50"),
        (["--sampler", "eulr"], "prompts.txt:1: sampler: got 'eulr'"),
        (["--steps", "0"], "num_inference_steps: got 0"),
        (["--guidance", "nan"], "guidance_scale: got nan"),
        (["--seed", "-1"], "seed: got -1"),
        (["--noise", "pink"], "prompts.txt:1: noise: got 'pink'"),
        (["--backend", "cuba"], "backend: got 'cuba'"),
    ],
)
def test_a_bad_word_is_refused_before_there_is_a_folder(words, expected, command, folder, capsys):
    assert expected in refused([*command, *words], capsys)
    assert not folder.exists()


def test_a_bad_line_is_named_before_there_is_a_folder(command, prompts, folder, capsys):
    rows = prompts.with_suffix(".jsonl")
    rows.write_text('{"prompt": "a"}\n\n{"prompt": "b", "size": "4096x32"}\n')
    command[3] = str(rows)
    assert f"{rows}:3: width: got 4096, expected 8 to 128" in refused(command, capsys)
    assert not folder.exists()


@pytest.mark.parametrize("given", ["both", "neither", "no folder"])
def test_a_prompt_or_a_file_and_a_folder(given, command, capsys):
    if given == "both":
        command.insert(2, "a prompt")
    elif given == "neither":
        del command[2:4]
    else:
        del command[4:6]
    expected = (
        "--output: got none" if given == "no folder" else f"PROMPT and --prompts: got {given}"
    )
    assert expected in refused(command, capsys)


def test_a_digest_is_of_all_that_decides(tmp_path):
    about = {"weights": {"denoiser": "0"}, "words": {"eta": 0.0}}
    job = Job("a", seed=0, guidance_scale=1.0)
    (one,), (same,) = make_entries([job], about), make_entries([job], dict(reversed(about.items())))
    assert one.digest == same.digest
    others = [
        make_entries([job, job], about)[1],
        *make_entries([Job("a", seed=0, guidance_scale=2.0)], about),
        *make_entries([Job("a", "", seed=0, guidance_scale=1.0)], about),
        *make_entries([job], {**about, "loras": [("0", 1.0)]}),
    ]
    assert len({one.digest, *(each.digest for each in others)}) == 5


# SIGKILL


def test_a_run_that_is_killed_and_killed_ends_as_one_that_is_not(sd35_bundle, tmp_path):
    prompts = tmp_path / "many.txt"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(60)))
    command = ["generate", str(sd35_bundle), "--prompts", str(prompts), *FAST]
    command += ["--batch", "4", "--size", "64x64", "--steps", "8", "--threads", "1"]
    found = kill_often(tmp_path / "killed", [*command, "-o", str(tmp_path / "killed")], 4, seed=0)
    assert found["images"] == 60
    assert found["redone"] == 0
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    assert manifest_of(tmp_path / "killed") == manifest_of(tmp_path / "whole")
