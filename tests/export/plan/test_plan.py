"""What is said of an export before it is done, and that nothing is done then."""

from __future__ import annotations

import ast
import dataclasses
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from eri_export import Progress, Stopwatch, disk, make_plan
from eri_export.checkpoints.stored_tensors import read_header
from eri_export.commands.dry_run import dry_run_lines
from eri_export.commands.export_summary import summary_lines
from eri_export.commands.export_time import approximate_times
from eri_export.gate import cases
from eri_export.progress import stage
from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main
from eri_runtime.units import megabytes
from tests.support import single_files as made
from tests.support.checkpoints import all_files
from tests.support.published_models import PUBLISHED, shapes

Usage = namedtuple("Usage", "free")
# what importing torch does: an empty folder of its compiler's
LIBRARIES = {"/dev/null", f"os.mkdir {tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"}
LIMIT = 1_300_000_000  # bytes of a dry run of any size; half of them are the libraries


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_the_bundle_is_what_was_planned(request, family):
    plan = make_plan(request.getfixturevalue(f"{family}_checkpoint"))
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    unknown = {
        "parameters": 0,
        "parity": 0.0,
        "unneeded": {},
        "segments": (),
        "step_cache": (),
        "activations": (),
    }
    components = {
        name: dataclasses.replace(spec, **unknown) for name, spec in bundle.components.items()
    }
    same = dataclasses.replace(bundle, root=Path(), files={}, components=components)
    assert plan.bundle == same
    for name, planned in plan.weights.items():
        tensors = read_header(bundle.path(bundle.components[name].weights))
        written = sum(tensor.nbytes for tensor in tensors)
        if name.startswith("text_encoder"):  # may have a last layer that nobody reads
            assert written <= planned <= 1.6 * written
        else:
            assert written == planned


def test_halves_of_a_vae_have_their_own_precision(sdxl_checkpoint):
    whole = make_plan(sdxl_checkpoint).weights
    halved = make_plan(sdxl_checkpoint, precision="vae_encoder=fp16").weights
    assert halved == {**whole, "vae_encoder": whole["vae_encoder"] / 2}


# the report

WATCHED = """
import os, sys
written = []
def hook(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(str(args[0]))
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "tempfile.mkstemp"):
        written.append(f"{event} {args[0]}")
sys.addaudithook(hook)
import shutil, types
shutil.disk_usage = lambda _: types.SimpleNamespace(free=10**12)
from eri_runtime.commands.main import main
status = main(sys.argv[1:])
from eri_export.machine import peak_memory
print(written, peak_memory(), file=sys.stderr)
sys.exit(status)
"""


def parts_of_flux(folder):
    """Four sparse files of full size: the arguments that name them."""

    def file(name, part, layout):
        state = layout(made.full_size("flux-dev", part))
        return str(made.sparse(folder / f"{name}.safetensors", shapes(state)))

    return [
        file("flux", "transformer", made.bfl_flux),
        *("--vae", file("ae", "vae", made.ldm_vae)),
        "--text-encoders",
        file("t5xxl", "text_encoder_2", dict),
        file("clip_l", "text_encoder", made.wrapped_clip),
    ]


def test_a_dry_run_at_full_size_writes_nothing_and_takes_little_memory(tmp_path):
    arguments = ["export", *parts_of_flux(tmp_path), "--precision", "fp16", "--dry-run"]
    before = all_files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all_files(tmp_path) == before
    written, peak = done.stderr.splitlines()[-1].rsplit(" ", 1)
    assert set(ast.literal_eval(written)) <= LIBRARIES
    assert int(peak) < LIMIT
    assert (
        "transformer: FluxTransformer2DModel, 11,901,408,320 parameters, 23,802.8 MB of F16"
        in done.stdout
    )
    assert "denoiser: fp16 but for" in done.stdout
    assert "36,082.2 MB of weights in all" in done.stdout


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_report_of_full_size_files(tmp_path, monkeypatch, model):
    layout, family, held = PUBLISHED[model]
    monkeypatch.setattr(cases, "available_memory", lambda: 4 * 10**9)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(10**12))
    file = made.sparse(tmp_path / "model.safetensors", layout(model))
    plan = make_plan(file, precision="fp16")
    lines = [*dry_run_lines(plan, tmp_path / "out")]
    assert lines[0].startswith(f"{file}: single file, ")
    would = [index for index, line in enumerate(lines) if line.startswith("would ")]
    assert len(would) == 3
    found, absent = lines[1 : held + 1], lines[held + 1 : would[0]]
    whole = f" in model.safetensors ({megabytes(file.stat().st_size)})"
    assert all(line.endswith(whole) and " parameters, " in line for line in found)
    assert all(" MB of F16" in line for line in found)
    assert len(absent) == len([line for line in absent if line.startswith("  no ")])
    assert len(plan.bundle.components) + len(absent) == (6 if family == "sd35" else 5)
    for name in plan.bundle.components:
        (line,) = [each for each in lines[would[0] :] if each.startswith(f"  {name}: fp")]
        assert megabytes(plan.weights[name]) in line
        assert "batch 1:" in line
    (denoiser,) = (recipe for recipe in plan.recipes if recipe.name == "denoiser")
    is_copied = any(line.startswith("  denoiser: a copy, ") for line in lines[would[1] :])
    assert is_copied == (denoiser.source.parameters > cases.LARGE)
    assert all_files(tmp_path) == [file]


def test_the_report_of_a_folder(sd35_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["export", str(sd35_checkpoint), "--dry-run", "--static", "--size", "48x32"]
    before = all_files(sd35_checkpoint)
    assert main([*words, "--precision", "bf16,vae=fp32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{sd35_checkpoint}: diffusers folder, Stable Diffusion 3")
    drawn = "a call that says nothing draws with flow_euler, linspace spacing, down to 0"
    assert f"{drawn}, in 28 steps at guidance 7" in lines
    (keys,) = [line for line in lines if line.startswith("  scheduler: honoured ")]
    assert {"num_train_timesteps", "shift", "use_dynamic_shifting"} <= set(re.findall(r"\w+", keys))
    assert f"would write engines/{sd35_checkpoint.name}, a new folder" in lines
    assert any(line.startswith("  vae_decoder: fp32, ") for line in lines)
    factor = make_plan(sd35_checkpoint).bundle.latents.factor
    height, width = (":".join([str(side // factor)] * 3) for side in (32, 48))
    assert any(f"height {height}, width {width}" in line for line in lines)
    assert any(line.startswith("  text_encoder_3: T5EncoderModel, ") for line in lines)
    assert "about" in lines[-1]
    assert "will differ here" in lines[-1]
    assert all_files(sd35_checkpoint) == before
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_would_be_replaced_is_named(flux_checkpoint, flux_bundle, capsys):
    assert main(["export", str(flux_checkpoint), "-o", str(flux_bundle), "--dry-run"]) == 0
    assert f"would write {flux_bundle}, replacing the bundle there" in capsys.readouterr().out


# errors


def without_a_tensor(root):
    """The checkpoint at `root` loses one weight."""
    from safetensors.numpy import load_file, save_file

    file = root / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--precision", "fp8"], 2, "precision of *: got fp8"),
        (["--precision", "vea=fp16"], 2, "got 'vea'"),
        (["--size", "big"], 2, "size: got 'big', expected WxH or MIN:OPT:MAX"),
        (["--size", "33x32"], 2, "33"),
        (["--batch", "4:2:8"], 2, "MIN ≤ OPT ≤ MAX"),
        (["--variant", "fp61"], 2, "fp61"),
        (["--revision", "v1"], 2, "revision"),
        (["--config", "."], 2, "config"),
        (["--vae", "nowhere"], 2, "nowhere"),
        (["--text-encoders", "nowhere"], 2, "nowhere"),
        (["-o", "photos"], 2, "something that is not a bundle"),
        ("no weight", 2, "no decoder.conv_in.bias"),
        ("no space", 1, "0.0 kB free"),
    ],
)
def test_a_dry_run_fails_as_the_export_does(
    flux_checkpoint, tmp_path, monkeypatch, capsys, words, status, expected
):
    monkeypatch.chdir(tmp_path)
    checkpoint = Path(shutil.copytree(flux_checkpoint, tmp_path / "flux"))
    (tmp_path / "photos").mkdir()
    if words == "no weight":
        without_a_tensor(checkpoint)
    if words == "no space":
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(0))
    options = words if isinstance(words, list) else []
    before, said = all_files(tmp_path), []
    for extra in (["--dry-run"], []):
        assert main(["export", str(checkpoint), *options, *extra]) == status
        captured = capsys.readouterr()
        said.append(captured.err)
        assert captured.out == ""
        assert all_files(tmp_path) == before
    assert said[0] == said[1]
    assert expected in said[0]


# progress, and the end


def test_a_stage_tells_its_beginning_its_bytes_and_its_end():
    told = []
    with stage(told.append, "denoiser", "write", 10) as advance:
        for count in (2, 7, 4):  # more than was said
            advance(count)
    assert told == [Progress("denoiser", "write", done, 10) for done in (0, 2, 9, 10)]


def test_a_stage_that_fails_does_not_tell_of_its_end():
    told = []
    with pytest.raises(RuntimeError), stage(told.append, "denoiser", "trace"):
        raise RuntimeError
    assert told == [Progress("denoiser", "trace", 0, 1)]


def test_a_stopwatch_adds_up_the_components(monkeypatch):
    now = iter([0.0, 2.0, 10.0, 11.0, 15.0])
    monkeypatch.setattr("eri_export.progress.time.perf_counter", lambda: next(now))
    told = []
    watch = Stopwatch(told.append)
    events = [
        Progress("vae_encoder", "trace", 0, 1),
        Progress("vae_encoder", "trace", 1, 1),
        Progress("denoiser", "trace", 0, 1),
        Progress("denoiser", "trace", 1, 1),
    ]
    for event in events:
        watch(event)
    assert told == events
    assert watch.seconds == {("vae_encoder", "trace"): 2.0, ("denoiser", "trace"): 1.0}
    assert (watch.of("trace"), watch.of("write")) == (3.0, 0)


def test_the_end_names_copies_and_what_was_not_run(flux_bundle, tmp_path):
    bundle = manifest.read(shutil.copytree(flux_bundle, tmp_path / "copy"))
    report = json.loads(bundle.path("parity.json").read_text())
    assert "all compared whole" in [*summary_lines(bundle, Stopwatch(), 1.0)][2]
    for metric in report["metrics"]:
        if metric["component"] == "denoiser":
            metric["network"] = "3 of 19 blocks"
    report["not_run"] = [{}, {}]
    bundle.path("parity.json").write_text(json.dumps(report))
    (line,) = [*summary_lines(bundle, Stopwatch(), 1.0)][2:]
    assert "compared as copies: denoiser (3 of 19 blocks); 2 ends of ranges" in line


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((0.2, 0.1, 0.4), "0 s 0 s 0 s 0 s"),
        ((20.4, 0.6, 11.7), "33 s 20 s 1 s 12 s"),
        ((30, 150, 613), "13.2 min 0.5 min 2.5 min 10.2 min"),
        ((900, 3600, 9000), "3.7 h 0.2 h 1.0 h 2.5 h"),
    ],
)
def test_the_parts_of_a_time_add_up(parts, words):
    texts = approximate_times(parts)
    assert " ".join(texts) == words
    total, *rest = (float(text.split()[0]) for text in texts)
    assert total == pytest.approx(sum(rest), abs=0.051)
