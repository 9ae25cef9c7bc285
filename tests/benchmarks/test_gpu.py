"""The ten minutes on a GPU, rehearsed to their end on the CPU with tiny models."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import eri_runtime as eri
from benchmarks.gpu import latency, memory, pack, parity, record, stages, subjects, weights
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.plan import NAMES, PLAN, VARIANTS, Stage
from benchmarks.gpu.settings import Settings
from eri_runtime.errors import BackendError, NonFiniteError, UsageError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "ten_minutes.sh"
# left to the stand-in: options of a provider that a CPU has not, and two of three compilations
LEFT_OUT = {"flux compile", "sd35 compile", *(f"sdxl {each}" for each in VARIANTS)}
STAGES = [each.name for each in PLAN if each.name not in LEFT_OUT]
FAST = ["--rehearse", "--backend", "cpu", "--together", "--steps", "2", "--rounds", "1"]


SIDE = 32  # pixels


def shrunk(root):
    """The bundle with smaller usual sizes, as a tiny Flux's own take a second per step."""
    file = root / "manifest.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    times = entries["defaults"]["height"] // SIDE
    entries["defaults"] |= {"height": SIDE, "width": SIDE}
    for component in entries["components"].values():
        for name, sizes in component["ranges"].items():
            if name.endswith(("height", "width")):
                sizes["opt"] //= times
            if name == "patches":
                sizes["opt"] //= times**2
    file.write_text(json.dumps(entries), encoding="utf-8")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, request):
    """The session's own bundles: as tiny models, and without weights in place of large ones."""
    output = tmp_path_factory.mktemp("parts")
    work = output / "work"
    for name in ("sdxl", "sd35", "flux"):
        bundle = request.getfixturevalue(f"{name}_bundle")
        checkpoint = request.getfixturevalue(f"{name}_checkpoint")
        for target in (name, *([] if name == "sdxl" else [f"tiny-{name}"])):
            shrunk(shutil.copytree(bundle, work / "bundles" / target))
        pack.strip(work, name, checkpoint)
    pack.archive(work, output / pack.ARCHIVE)
    shutil.rmtree(work)
    return output


@pytest.fixture(scope="module")
def done(parts, tmp_path_factory):
    """What the script wrote in one rehearsal of everything."""
    out = tmp_path_factory.mktemp("out")
    ran = subprocess.run(
        [SCRIPT, parts, out, *FAST, "--only", *STAGES],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out


@pytest.fixture(scope="module")
def found(done):
    return json.loads((done / "gpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """The unpacked parts with SD3.5's weights filled, for tests of one piece."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(parts / "bundles.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    list(weights.fill(settings(folder), "sd35", ()))
    return folder


def settings(folder, **changes):
    return Settings(
        folder=folder, **{"backend": "cpu", "rehearsal": True, "steps": 2, "rounds": 1} | changes
    )


def run(folder, out, *more):
    """The status of the command, and what it wrote."""
    status = main([str(folder), "-o", str(out), *FAST, *more])
    return status, json.loads((out / "gpu.json").read_text(encoding="utf-8"))


def rows_of(rows, stage, part=None):
    return [row for row in rows if row["stage"] == stage and part in (None, row.get("part"))]


# the rehearsal


def test_the_rehearsal_does_every_stage_whose_parts_it_has(found):
    record.check(found)
    assert found["finished"]
    assert [row for row in found["rows"] if row["status"] == "error"] == []
    skipped = {row["stage"] for row in found["rows"] if row["status"] == "skipped"}
    assert {NAMES[each].model for each in skipped} == {
        "tiny-sdxl",
        "tiny-sdxl-fp16",
        "tiny-sdxl-dynamic",
    }
    assert {row["stage"] for row in found["rows"]} == set(STAGES)
    assert all(row["rehearsal"] for row in found["rows"])


def test_the_rehearsal_agrees_with_its_references(found):
    """float32 on one machine: what differs is the order of summation, a few units of 1e-7."""
    judged = [row for row in found["rows"] if record.passed(row) is not None]
    assert all(record.passed(row) for row in judged)
    errors = [row["error"] for row in rows_of(judged, "sdxl", "parity")]
    assert 0 < max(errors) < 1e-4


def test_every_trajectory_of_every_subject_is_compared(found):
    whats = ["run 1", "run 2", "run 3", "in turns 1", "in turns 2", "kept"]
    for name in ("tiny-sd35", "flux"):
        rows = rows_of(found["rows"], name, "parity")
        for subject in NAMES[name].subjects_on("cpu"):
            said = [row["what"] for row in rows if row["subject"] == subject]
            assert said[: len(whats)] == whats
    components = {row["what"] for row in rows_of(found["rows"], "tiny-sd35", "parity")}
    assert {"denoiser", "vae_decoder", "vae_encoder", "text_encoder_3"} <= components


def test_every_time_has_its_parity_and_counts_by_it(found):
    subjects_ = {row["subject"] for row in rows_of(found["rows"], "sdxl", "latency")}
    assert subjects_ == set(NAMES["sdxl"].subjects_on("cpu"))
    for row in found["rows"]:
        if row.get("part") == "latency":
            assert row["step_ms"]["samples"] == 1
            assert row["counts"]
            assert row["parity"]["error"] <= row["parity"]["limit"]


def test_components_pictures_and_kernels_are_measured(found):
    vae = rows_of(found["rows"], "sdxl vae", "component")
    assert [row["subject"] for row in vae] == list(NAMES["sdxl vae"].subjects_on("cpu"))
    (tiny,) = rows_of(found["rows"], "tiny-flux picture", "picture")
    assert tiny["parity"]["passed"]
    (full,) = rows_of(found["rows"], "sdxl picture", "picture")
    assert full["parity"] is None
    assert full["counts"]
    ours, torchs = rows_of(found["rows"], "sdxl kernels", "kernels")
    assert ours["kernels"] == []  # the profiler sees ONNX Runtime's kernels on a GPU alone
    assert torchs["calls"] > len(torchs["kernels"]) > 0
    assert torchs["ms"] > 0


def test_rows_and_record_and_log_hold_the_same(done, found):
    lines = (done / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found["rows"]
    log = (done / "log.txt").read_text(encoding="utf-8")
    assert all(f"{stage}: " in log for stage in STAGES)


def test_the_compiler_comes_last_and_the_smoke_test_first():
    assert PLAN[0].worker == "smoke"
    assert all("torch/compile" in each.subjects for each in PLAN[-3:])
    assert not any("torch/compile" in each.subjects for each in PLAN[:-3])
    assert len(NAMES) == len(PLAN)
    # by value: what the rental must not end without fits it twice over
    assert sum(each.seconds for each in PLAN[: [*NAMES].index("sdxl") + 1]) < 300


# weights


def test_filled_weights_are_of_unit_gain_and_fit_the_manifest(folder):
    bundle = settings(folder).model("sd35").bundle
    eri.load(bundle.root, "cpu").close()  # checks sizes and hashes
    name = bundle.components["denoiser"].weights
    entries, start = weights.read_skeleton(bundle.path(name), bundle.files[name].size)
    with eri.bundle.open_regular_file(bundle.path(name)) as (stream, size):
        assert size == bundle.files[name].size
        key = "transformer_blocks.0.ff.net.0.proj.weight"
        stream.seek(start + entries[key].begin)
        raw = stream.read(entries[key].end - entries[key].begin)
    matrix = np.frombuffer(raw, np.float32).reshape(entries[key].shape)
    # the standard deviation of n normal values is off by 1/sqrt(2n), 1.1 % here
    assert float(matrix.std()) == pytest.approx(matrix.shape[1] ** -0.5, rel=0.05)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_weight_has_its_stored_type(dtype):
    entry = eri.bundle.Entry(dtype, (4096,), 0, 0)
    drawn = weights.weight("norm.weight", entry, torch.Generator().manual_seed(0))
    assert drawn.dtype == weights.DTYPES[dtype]
    assert float(drawn.float().mean()) == pytest.approx(1, abs=0.02)  # 0.1/sqrt(4096) = 0.0016


# subjects


def test_a_subjects_name_says_backend_loop_and_options():
    assert subjects.parsed("cuda/captured") == ("cuda", "captured", {})
    assert subjects.parsed("cuda/step") == ("cuda", "step", {"enable_cuda_graph": "0"})
    assert subjects.parsed("cuda/captured+plain,use_tf32=1") == (
        "cuda",
        "captured",
        {"plain": "", "use_tf32": "1"},
    )
    assert "cudnn_conv_algo_search=EXHAUSTIVE" in VARIANTS


def test_options_reach_the_cuda_provider_alone(monkeypatch):
    import onnxruntime as ort

    opened = []
    monkeypatch.setattr(ort, "InferenceSession", lambda graph, providers: opened.append(providers))
    with subjects.provider_options({"use_tf32": "1"}):
        ort.InferenceSession("g", providers=[(subjects.CUDA, {"use_tf32": "0", "device_id": "0"})])
        ort.InferenceSession("g", providers=[("CPUExecutionProvider", {})])
    assert opened == [
        [(subjects.CUDA, {"use_tf32": "1", "device_id": "0"})],
        [("CPUExecutionProvider", {})],
    ]


def test_a_plain_bundle_has_all_but_the_form_for_cuda(folder):
    model = settings(folder).model("tiny-sd35")
    form = model.root / "denoiser" / "step.cuda.onnx"
    form.touch()
    try:
        plain = model.without_cuda_form()
    finally:
        form.unlink()
    files = {each.relative_to(plain.root) for each in plain.root.rglob("*") if each.is_file()}
    assert files == {
        each.relative_to(model.root)
        for each in model.root.rglob("*")
        if each.is_file() and not each.name.endswith(".cuda.onnx")
    }
    weights_ = plain.path(plain.components["denoiser"].weights)
    assert weights_.samefile(model.bundle.path(plain.components["denoiser"].weights))


def test_pytorch_runs_what_it_has_a_config_of(folder):
    here = settings(folder)
    model = here.model("sd35")
    with subjects.pipeline(here, model, "torch/eager") as pipe:
        inputs = parity.drawn(pipe.bundle.components["denoiser"])
        found = pipe.run("denoiser", inputs)
        with pytest.raises(BackendError, match="PyTorch"):
            pipe.run("text_encoder", parity.drawn(pipe.bundle.components["text_encoder"]))
    with subjects.pipeline(here, model, "cpu/numpy") as pipe:
        expected = pipe.run("denoiser", inputs)
    assert parity.output_error(found, expected) < parity.LIMITS["component"]["fp32"]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_pytorchs_loop_takes_history_and_noise(folder, sampler):
    here = settings(folder)
    latents = []
    for subject in ("cpu/numpy", "torch/eager"):
        with subjects.pipeline(here, here.model("sd35"), subject) as pipe:
            request = pipe.request(**subjects.words(pipe.bundle, 4) | {"sampler": sampler})
            latents.append(list(pipe.denoise(request)))
    for ours, oracle in zip(*latents, strict=True):
        for name in ("x", "denoised"):
            error = parity.error(getattr(ours, name), getattr(oracle, name))
            assert error < parity.LIMITS["trajectory"]["fp32"]
        assert len(ours.remembered) == len(oracle.remembered)


# parity


def test_nan_is_no_parity():
    nan = parity.error(np.array([1.0, np.nan]), np.ones(2))
    assert parity.verdict(nan, "component", "fp32") == {
        "error": None,
        "limit": 1e-4,
        "passed": False,
    }
    assert parity.error(np.ones(2), np.ones(3)) == float("inf")


def stale(pipe, steps, seed=0):
    """A loop that from its second trajectory on gives the first one's latents again."""
    if not hasattr(pipe, "first"):
        pipe.first = list(subjects.begin(pipe, steps, seed))
    yield from pipe.first


def overwriting(pipe, steps, seed=0):
    """A loop whose steps all share one array, as a kept trajectory's buffers may be reused."""
    shared = None
    for step in subjects.begin(pipe, steps, seed):
        shared = step.x.copy() if shared is None else shared
        shared[:] = step.x
        step.latents.x = shared
        yield step


@pytest.mark.parametrize(
    ("loop", "wrong"),
    [(stale, {"run 2", "run 3", "in turns 2"}), (overwriting, {"kept"})],
)
def test_a_loop_that_forgets_whose_buffers_it_has_is_found(folder, monkeypatch, loop, wrong):
    here = settings(folder)
    with subjects.pipeline(here, here.model("tiny-sd35"), "cpu/step") as pipe:
        expected = parity.expected_of(pipe, 2)
        assert all(each["passed"] for _, each in parity.compare(pipe, expected, "fp32"))
        monkeypatch.setattr(parity, "begin", loop)
        verdicts = dict(parity.compare(pipe, expected, "fp32"))
    assert {what for what, each in verdicts.items() if not each["passed"]} == wrong


def test_latents_that_are_not_finite_fail_and_do_not_raise(folder, monkeypatch):
    def breaks(*_):
        raise NonFiniteError("latents", got="NaN", expected="finite")

    monkeypatch.setattr(parity, "begin", breaks)
    ((what, verdict),) = parity.compare(None, {0: [np.ones(1)]}, "fp16")
    assert what == "not finite"
    assert verdict["passed"] is False


# failures


def test_a_subject_that_fails_while_it_is_timed(folder, monkeypatch):
    calls = []

    def fails(pipe, steps):
        calls.append(pipe)
        if len(calls) == 2:
            raise MemoryError("out of memory")
        return [1.0] * (steps - 1), float(steps)

    monkeypatch.setattr(latency, "timed", fails)
    stage = ("cpu/step", "cpu/captured", "cpu/numpy")
    rows = list(latency.measure(settings(folder), "sd35", stage))
    by = {row["subject"]: row for row in rows if row["part"] == "latency"}
    assert "out of memory" in by["cpu/captured"]["error"]
    assert by["cpu/step"]["counts"]
    assert by["cpu/numpy"]["counts"]


def test_a_backend_that_raises_costs_its_own_rows_only(folder):
    rows = list(latency.measure(settings(folder), "sd35", ("tensorrt/step", "cpu/step")))
    by = {row["subject"]: row for row in rows if row["part"] == "latency"}
    assert "BackendError" in by["tensorrt/step"]["error"]
    assert by["cpu/step"]["counts"]


def test_a_time_whose_parity_fails_does_not_count(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "error", lambda *_: 1.0)
    status, found = run(folder, tmp_path, "--only", "sd35")
    assert status == 1
    rows = rows_of(found["rows"], "sd35", "latency")
    assert [row["counts"] for row in rows] == [False, False]
    assert all(row["parity"]["error"] > row["parity"]["limit"] for row in rows)


def test_under_a_stand_in_parity_is_reported_and_does_not_fail():
    row = {"status": "ok", "part": "latency", "counts": False}
    error = record.failure("cuda/step", MemoryError("none left"))
    nan = record.failure("cuda/step", NonFiniteError("latents", got="NaN", expected="finite"))
    assert record.failed([row, error, nan]) == [row, error, nan]
    assert record.failed([row, error, nan], garbage=True) == [error]


def test_a_failed_smoke_test_stops_everything(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "error", lambda *_: 1.0)
    status, found = run(folder, tmp_path)
    assert status == 1
    assert [row["stage"] for row in found["rows"]] == ["smoke"]


def test_a_process_of_its_own(folder, tmp_path):
    sheet = stages.Sheet(tmp_path / "rows.jsonl", {})
    stages.apart(NAMES["smoke"], settings(folder), sheet, 60)
    (row,) = sheet.rows()
    assert row["passed"]


def test_a_process_that_dies_or_does_not_end_is_a_row(folder, tmp_path, monkeypatch):
    sheet = stages.Sheet(tmp_path / "rows.jsonl", {"device": "none"})
    monkeypatch.setattr(stages.sys, "executable", "/bin/false")
    stages.apart(NAMES["flux"], settings(folder), sheet, 60)
    (row,) = sheet.rows()
    assert row["status"] == "error"
    assert row["subject"] == "torch/eager, cpu/captured"
    assert stages.ended(["sh", "-c", "echo the driver is gone >&2; exit 3"], 60) == (
        "status 3: the driver is gone"
    )
    assert stages.ended(["sleep", "60"], 0.01).startswith("stopped")
    assert stages.ended(["true"], 60) is None


def test_a_line_that_a_killed_process_left_half_written_is_no_row(tmp_path):
    sheet = stages.Sheet(tmp_path / "rows.jsonl", {})
    sheet.add(Stage("smoke", "smoke"), {"subject": "cpu"})
    with sheet.file.open("a") as stream:
        stream.write('{"stage": "fl')
    assert [row["subject"] for row in sheet.rows()] == ["cpu"]


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no bundles"):
        main([str(tmp_path), "-o", str(tmp_path / "out")])


def test_a_budget_that_is_spent_names_what_it_skips(folder, tmp_path):
    status, found = run(folder, tmp_path, "--budget", "20", "--spent", "19")
    assert status == 0
    assert found["finished"]
    assert [row["stage"] for row in found["rows"]] == [each.name for each in PLAN]
    assert {row["status"] for row in found["rows"]} == {"skipped"}


# full-size skeletons


def test_a_hollow_export_writes_headers_and_compares_nothing(
    sd35_checkpoint, tmp_path, sd35_bundle
):
    target = tmp_path / "bundle"
    with pack.hollow_export():
        bundle = pack.export(sd35_checkpoint, target)
    whole = eri.read_bundle(sd35_bundle)
    pack.skeleton(bundle)
    for name in weights.weight_files(bundle):
        assert bundle.files[name].size == whole.files[name].size
        entries, start = weights.read_skeleton(bundle.path(name), bundle.files[name].size)
        assert bundle.path(name).stat().st_size == start
        assert entries == weights.read_skeleton(whole.path(name), whole.files[name].size)[0]
    step = bundle.path(bundle.components["denoiser"].step)
    assert step.read_bytes() == whole.path(whole.components["denoiser"].step).read_bytes()


@pytest.mark.parametrize("name", pack.FULL)
def test_a_hollow_checkpoint_is_one_that_export_takes(name, tmp_path):
    from benchmarks.gpu.checkpoints import hollow_checkpoint
    from eri_export.choices.ranges import make_ranges
    from eri_export.plan.plan import make_plan

    full = pack.FULL[name]
    plan = make_plan(
        hollow_checkpoint(full.family, full.published, full.parts, tmp_path / name),
        precision=full.precision,
        ranges=make_ranges(size=str(pack.SIZE), static=True),
        text_encoders=[tmp_path / name / each for each in full.parts if "encoder" in each],
    )
    assert plan.bundle.family == full.family
    assert (plan.bundle.defaults.height, plan.bundle.defaults.width) == (1024, 1024)
    assert all(each.min == each.max for recipe in plan.recipes for each in recipe.ranges.values())
    assert plan.nbytes > 4e9


def test_parts_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        pack, "make_tiny", lambda name, work: (work / "bundles" / name).mkdir(parents=True)
    )
    words = [str(tmp_path), "--models", "tiny-flux", "--no-wheels"]
    assert pack.main(words) == 0
    assert "bundles.tar.xz" in capsys.readouterr().out
    monkeypatch.setattr(pack, "LIMIT", 1)
    assert pack.main(words) == 1


# memory on a GPU, with the driver's tool played by a script


def test_the_drivers_count_is_read_while_the_block_lasts(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in *loop-ms*) while true; do echo 900; sleep 0.01; done;; *) echo 500;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with memory.watched("cuda") as watch:
        while len(watch.used) < 3:
            pass
    assert watch.used[0] == 500
    assert watch.peak_mb == round(400 * 2**20 / 1e6)


# the schema


@pytest.fixture
def latency_row(found):
    return copy.deepcopy(rows_of(found["rows"], "sd35", "latency")[0])


def test_a_row_without_parity_is_refused(latency_row, found):
    assert record.problem_of(latency_row) is None
    del latency_row["parity"]
    assert record.problem_of(latency_row) == "no parity"
    with pytest.raises(UsageError, match="no parity"):
        record.check({**found, "rows": [latency_row]})


@pytest.mark.parametrize(
    "change",
    [
        {"counts": False},
        {"parity": {"against": "x", "error": 2.0, "limit": 1.0, "passed": True}},
        {"parity": {"against": "x", "error": None, "limit": 1.0, "passed": True}},
        {"parity": {"error": 0.0, "limit": 1.0, "passed": True}},
        {"step_ms": {"median": 1.0, "low": 2.0, "high": 3.0, "p95": 3.0, "samples": 3}},
        {"total_ms": {"median": 1.0, "low": 1.0, "high": 1.0, "p95": 1.0, "samples": 0}},
        {"part": "speed"},
        {"status": "fine"},
        {"stage": ""},
        {"device": None},
        {"steps": True},
        {"status": "error"},
        {"status": "skipped"},
    ],
)
def test_a_row_that_says_too_little_or_contradicts_itself_is_refused(latency_row, change):
    assert record.problem_of({**latency_row, **change}) is not None


def test_a_parity_row_cannot_pass_by_its_word(found):
    row = rows_of(found["rows"], "sd35", "parity")[0]
    assert record.problem_of({**row, "error": 1.0}) is not None


def test_a_refused_record_leaves_the_file_as_it_was(tmp_path, found, latency_row):
    file = tmp_path / "results.json"
    record.write(file, found)
    before = file.read_bytes()
    del latency_row["counts"]
    with pytest.raises(UsageError, match="counts"):
        record.write(file, {**found, "rows": [latency_row]})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_record_says_what_and_with_what(found):
    about = found["about"]
    assert {"numpy", "onnxruntime", "torch"} <= about["versions"].keys()
    assert "--rehearse" in about["command"]
    assert about["commit"]
