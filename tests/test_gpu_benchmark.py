"""The GPU's checks without a GPU: the same command on the CPU, with a tiny bundle."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eri_runtime as eri
from benchmarks.gpu import bundles, checkpoints, jobs, latency, memory, parity, record, subjects
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.settings import MODELS, Case, Settings
from eri_export.plan import make_plan
from eri_export.recipes.base import TORCH_PRECISION
from eri_runtime import manifest
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.spec import ShapeRange

CASE = Case("tiny-sd35", 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sd35_checkpoint, sd35_bundle):
    """Where the session's own bundle is what was made before."""
    folder = tmp_path_factory.mktemp("gpu")
    CASE.bundle(folder).symlink_to(sd35_bundle, target_is_directory=True)
    CASE.checkpoint(folder).symlink_to(sd35_checkpoint, target_is_directory=True)
    return folder


def settings(folder, **changes):
    usual = {"backends": ("cpu",), "torch": ("eager",), "steps": 3, "rounds": 3}
    return Settings(device="cpu", models=("tiny-sd35",), folder=folder, **usual | changes)


def run(folder, *more, runner=jobs.here):
    """The status of the command, and what it wrote."""
    file = folder / "results.json"
    words = ["--device", "cpu", "--models", "tiny-sd35", "--torch", "eager", "--rounds", "3"]
    status = main([*words, "--folder", str(folder), "-o", str(file), *more], runner)
    return status, json.loads(file.read_text())


@pytest.fixture(scope="module")
def done(folder):
    return run(folder)


def rows_of(record, part):
    return [row for row in record["rows"] if row["part"] == part]


def test_every_part_has_its_rows(done):
    status, found = done
    assert status == 0
    assert found["finished"]
    assert {row["status"] for row in found["rows"]} == {"ok"}
    assert [row["made"] for row in rows_of(found, "bundle")] == ["before"]
    assert {row["subject"] for row in rows_of(found, "latency")} == {
        "cpu/numpy",
        "cpu/step",
        "torch/eager",
    }
    assert {row["subject"] for row in rows_of(found, "memory")} == {
        "cpu/numpy",
        "cpu/step",
        "torch/eager",
    }
    record.check(found)


def test_parity_is_of_every_component_and_loop(done, sd35_bundle):
    rows = rows_of(done[1], "parity")
    assert all(row["passed"] for row in rows)
    whats = [(row["subject"], row["what"]) for row in rows]
    assert [("cpu", name) for name in eri.read_bundle(sd35_bundle).components] == whats[:-4]
    assert whats[-4:] == [
        ("cpu/numpy", "trajectory"),
        ("cpu/step", "trajectory"),
        ("cpu/step", "again"),
        ("cpu/step", "loop"),
    ]


def test_latencies_are_of_trajectories_that_agree_with_pytorch(done):
    rows = {row["subject"]: row for row in rows_of(done[1], "latency")}
    assert all(row["counts"] for row in rows.values())
    error = rows["torch/eager"]["parity"]["error"]
    assert 0 < error <= 1e-5
    for row in rows.values():
        assert row["total_ms"]["samples"] == 3
        assert row["step_ms"]["samples"] == 3 * (row["steps"] - 1)
        assert row["total_ms"]["median"] > row["step_ms"]["low"]


def test_the_table_shows_every_row(done, folder, capsys):
    run(folder, "--parts", "latency")
    said = capsys.readouterr().out
    assert all(name in said for name in ("cpu/numpy", "cpu/step", "torch/eager"))
    assert "0 failed, 0 skipped" in said


def test_in_processes_of_its_own(folder):
    subjects_ = ["cpu/numpy", "cpu/step"]
    here = settings(folder)
    rows = [
        row for each in subjects_ for row in jobs.apart(jobs.Job("memory", CASE, each), here, 60)
    ]
    assert [row["subject"] for row in rows] == subjects_
    assert all(record.problem_of(row) is None for row in rows)
    assert all(10 < row["host_mb"] < 400 for row in rows)  # torch alone takes more
    assert all(row["device_mb"] is None for row in rows)


# failures


def test_a_backend_that_raises_costs_its_own_rows_only(folder):
    status, found = run(folder, "--backends", "cpu", "tensorrt", "--parts", "latency", "parity")
    assert status == 1
    for part in ("parity", "latency"):
        rows = {row["subject"]: row for row in rows_of(found, part)}
        assert rows["cpu/step"]["status"] == rows["cpu/numpy"]["status"] == "ok"
        failed = rows["tensorrt/numpy"]
        assert failed["status"] == "error"
        assert "BackendError" in failed["error"]
    (plan,) = rows_of(found, "plan")
    assert plan["status"] == "error"


def test_a_subject_that_fails_while_it_is_timed(folder, monkeypatch):
    calls = []

    def fails(pipe, steps):
        calls.append(pipe)
        if len(calls) == 2:
            raise MemoryError("out of memory")
        return [1.0] * (steps - 1), float(steps)

    monkeypatch.setattr(latency, "timed", fails)
    rows = list(jobs.work(jobs.Job("latency", CASE), settings(folder)))
    by = {row["subject"]: row for row in rows}
    assert by["cpu/step"]["status"] == "error"
    assert "out of memory" in by["cpu/step"]["error"]
    assert by["cpu/numpy"]["status"] == by["torch/eager"]["status"] == "ok"


def test_a_row_whose_parity_fails_is_marked_and_its_latency_does_not_count(folder, monkeypatch):
    right = parity.final
    wrong = iter(range(100))

    def drifts(pipe, steps):
        found = right(pipe, steps)
        return {"latents": found["latents"] * (1 + 0.1 * next(wrong))}

    monkeypatch.setattr(latency, "final", drifts)
    status, found = run(folder, "--parts", "latency")
    assert status == 1
    rows = rows_of(found, "latency")
    assert len(rows) == 3
    for row in rows:
        assert not row["parity"]["passed"]
        assert row["parity"]["error"] > row["parity"]["limit"]
        assert row["counts"] is False


def test_nan_is_no_parity():
    nan = {"x": np.array([1.0, np.nan])}
    found = parity.verdict(nan, {"x": np.ones(2)}, "component", CASE)
    assert found == {"error": None, "limit": 1e-4, "passed": False}


def test_a_process_that_dies_is_a_row(folder):
    job = jobs.Job("memory", CASE, "no-such-backend/step")
    (row,) = jobs.apart(job, settings(folder), 60)
    assert row["status"] == "error"
    assert "no-such-backend" in row["error"]
    (row,) = jobs.apart(job, settings(folder), 0.01)
    assert row["error"].startswith("stopped")


def test_what_a_dead_process_said(monkeypatch):
    command = ["python", "-c", "import sys; sys.exit('the driver is gone')"]
    assert jobs._ended(command, 60) == "status 1: the driver is gone"
    assert jobs._ended(["python", "-c", ""], 60) is None


def test_a_budget_that_is_spent_names_what_it_skips(folder, capsys):
    status, found = run(folder, "--budget", "1")
    assert status == 0
    planned = jobs.jobs_of(settings(folder), ("bundle", "plan", "parity", "latency", "memory"))
    assert [row["part"] for row in found["rows"]] == [job.part for job in planned]
    assert {row["status"] for row in found["rows"]} == {"skipped"}
    assert all("1 s" in row["reason"] for row in found["rows"])
    assert f"{len(planned)} skipped" in capsys.readouterr().out


# order, models, checkpoints


def test_the_most_important_is_done_first():
    here = Settings(
        device="cuda", models=("tiny-flux", "sdxl"), backends=("cuda", "tensorrt-rtx"), sizes=(512,)
    )
    jobs_ = jobs.jobs_of(here, ("bundle", "plan", "parity", "latency", "memory"))
    assert [job.part for job in jobs_[:10]] == 2 * [
        "bundle",
        "plan",
        "parity",
        "parity",
        "latency",
    ]
    assert {job.part for job in jobs_[10:]} == {"memory"}
    assert [str(each) for each in here.cases()] == ["tiny-flux 32", "sdxl 512"]
    assert len(jobs_[10:]) == 2 * len(subjects.subjects_of(here)) == 14


def test_settings_pass_through_json(tmp_path):
    here = settings(tmp_path, sizes=(512, 1024))
    assert Settings.from_json(json.loads(json.dumps(here.to_json()))) == here


def test_a_digest_tells_bundles_apart(tmp_path):
    cases = [Case(name, size) for name in MODELS for size in (32, 64)]
    places = {case.bundle(tmp_path) for case in cases} | {
        case.checkpoint(tmp_path) for case in cases
    }
    assert len(places) == 2 * len(cases)
    assert len({case.digest for case in cases}) == len(cases)


def test_a_bundle_is_made_once_and_a_half_made_checkpoint_is_not_taken(tmp_path, monkeypatch):
    made = []

    def make(model, root):
        made.append(root)
        root.mkdir(parents=True)
        (root / "weights").touch()
        if len(made) == 1:
            raise OSError("the disk is full")
        return root

    def publish(checkpoint, place, **_options):
        assert [each.name for each in checkpoint.iterdir()] == ["weights"]
        place.mkdir()
        (place / "manifest.json").touch()

    monkeypatch.setattr(bundles, "make_checkpoint", make)
    monkeypatch.setattr(bundles, "export", publish)
    monkeypatch.setattr(manifest, "read", lambda _: SimpleNamespace(files={}, components={}))
    job = jobs.Job("bundle", CASE)
    rows = [row for _ in range(3) for row in jobs.work(job, settings(tmp_path))]
    assert [row["status"] for row in rows] == ["error", "ok", "ok"]
    assert "the disk is full" in rows[0]["error"]
    assert [row["made"] for row in rows[1:]] == ["now", "before"]
    assert len(made) == 2


@pytest.mark.parametrize("name", ["sdxl", "sd35", "sd35-large", "flux"])
def test_a_full_size_checkpoint_is_one_that_export_takes(name, tmp_path, monkeypatch):
    """All but the bytes of its weights, which are too many: those are left sparse."""

    def hollow(folder, shapes, dtype):
        from tests.single_files import sparse

        kind = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        sparse(folder / "diffusion_pytorch_model.safetensors", shapes, kind)

    monkeypatch.setattr(checkpoints, "write_shards", hollow)
    model = MODELS[name]
    plan = make_plan(
        checkpoints.make_checkpoint(model, tmp_path / name),
        precision=model.precision,
        ranges=bundles.ranges_of(model),
    )
    (recipe,) = plan.recipes
    assert recipe.dtype is TORCH_PRECISION[model.precision]
    assert plan.bundle.family == model.family
    assert (plan.bundle.defaults.height, plan.bundle.defaults.width) == (1024, 1024)
    assert all(each.min == each.max for each in recipe.ranges.values())


def test_shards_hold_every_weight_once_and_hollow_ones_only_say_so(tmp_path):
    from safetensors import safe_open

    shapes = {"a.weight": (300, 200), "a.bias": (300,), "norm.weight": (200,), "b.weight": (50, 40)}
    checkpoints.write_shards(tmp_path, shapes, torch.float16, most=121_000)
    index = json.loads(
        (tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text("utf-8")
    )
    assert index["weight_map"].keys() == shapes.keys()
    assert len(set(index["weight_map"].values())) == 2
    pool = torch.randn(checkpoints.POOL, generator=torch.Generator().manual_seed(0))
    sizes = {file: file.stat().st_size for file in tmp_path.glob("*.safetensors")}
    for name, shape in shapes.items():
        with safe_open(tmp_path / index["weight_map"][name], "pt") as held:
            assert torch.equal(held.get_tensor(name), checkpoints.weight(name, shape, pool).half())
    checkpoints.hollow(tmp_path)
    for name, shape in shapes.items():
        with safe_open(tmp_path / index["weight_map"][name], "pt") as held:
            assert tuple(held.get_slice(name).get_shape()) == shape
            assert not held.get_tensor(name).any()
    assert {file: file.stat().st_size for file in sizes} == sizes
    assert sum(file.stat().st_blocks * 512 for file in sizes) < sum(sizes.values()) / 4


def test_random_weights_have_unit_gain():
    pool = torch.randn(checkpoints.POOL, generator=torch.Generator().manual_seed(0))
    matrix = checkpoints.weight("x.weight", (512, 384), pool)
    assert float((matrix @ torch.ones(384)).std()) == pytest.approx(1, rel=0.15)
    assert float(matrix.std()) == pytest.approx(384**-0.5, rel=0.05)
    assert len({tuple(row) for row in matrix[:, :4].tolist()}) == 512
    assert float(checkpoints.weight("norm.weight", (4096,), pool).mean()) == pytest.approx(
        1, abs=0.02
    )
    wrapped = checkpoints.weight("late.bias", (checkpoints.POOL + 3,), pool)
    assert len(wrapped) == checkpoints.POOL + 3
    assert math.isfinite(float(wrapped.sum()))


def test_one_row_more_is_not_captured(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    rows = bundle.components["denoiser"].ranges["batch"]
    wider = subjects.uncaptured(bundle).components["denoiser"].ranges["batch"]
    assert wider == ShapeRange(min=rows.min, opt=rows.opt, max=rows.max + 1)


def test_pytorch_runs_the_denoiser_and_nothing_else(folder):
    with subjects.pipeline(settings(folder), CASE, "torch/eager") as pipe:
        inputs = parity.drawn(pipe.bundle.components["denoiser"])
        found = pipe.run("denoiser", inputs)
        with pytest.raises(BackendError, match="PyTorch"):
            pipe.run("vae_decoder", {})
    with subjects.pipeline(settings(folder), CASE, "cpu/numpy") as pipe:
        expected = pipe.run("denoiser", inputs)
    assert parity.verdict(found, expected, "component", CASE)["passed"]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
def test_pytorchs_loop_takes_history_and_noise(folder, sampler):
    latents = []
    for subject in ("cpu/numpy", "torch/eager"):
        with subjects.pipeline(settings(folder), CASE, subject) as pipe:
            request = pipe.request(**subjects.words(pipe.bundle, 4) | {"sampler": sampler})
            latents.append(list(pipe.denoise(request)))
    for ours, oracle in zip(*latents, strict=True):
        for name in ("x", "denoised"):
            pair = {name: getattr(ours, name)}, {name: getattr(oracle, name)}
            assert parity.verdict(*pair, "trajectory", CASE)["passed"]
        assert len(ours.remembered) == len(oracle.remembered)


# memory on a GPU, with the driver's tool played by a script


def test_the_drivers_count_is_read_while_the_block_lasts(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in *loop-ms*) while true; do echo 900; sleep 0.01; done;; *) echo 500;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with memory.watched("cuda") as used:
        while len(used) < 3:
            pass
    assert used[0] == 500
    assert set(used[1:]) == {900}


# the schema


@pytest.fixture
def latency_row(done):
    return copy.deepcopy(rows_of(done[1], "latency")[0])


def test_a_row_without_parity_is_refused(latency_row, done):
    assert record.problem_of(latency_row) is None
    del latency_row["parity"]
    assert record.problem_of(latency_row) == "no parity"
    with pytest.raises(UsageError, match="no parity"):
        record.check({**done[1], "rows": [latency_row]})


@pytest.mark.parametrize(
    "change",
    [
        {"counts": False},
        {"parity": {"against": "x", "error": 2.0, "limit": 1.0, "passed": True}},
        {"parity": {"against": "x", "error": None, "limit": 1.0, "passed": True}},
        {"parity": {"error": 0.0, "limit": 1.0, "passed": True}},
        {"step_ms": {"median": 1.0, "low": 2.0, "high": 3.0, "samples": 3}},
        {"total_ms": {"median": 1.0, "low": 1.0, "high": 1.0, "samples": 0}},
        {"part": "speed"},
        {"status": "fine"},
        {"model": ""},
        {"steps": True},
        {"status": "error"},
        {"status": "skipped"},
    ],
)
def test_a_row_that_says_too_little_or_contradicts_itself_is_refused(latency_row, change):
    assert record.problem_of({**latency_row, **change}) is not None


def test_a_parity_row_cannot_pass_by_its_word(done):
    row = rows_of(done[1], "parity")[0]
    assert record.problem_of({**row, "error": 1.0}) is not None


def test_a_refused_record_leaves_the_file_as_it_was(tmp_path, done, latency_row):
    file = tmp_path / "results.json"
    record.write(file, done[1])
    before = file.read_bytes()
    del latency_row["counts"]
    with pytest.raises(UsageError, match="counts"):
        record.write(file, {**done[1], "rows": [latency_row]})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_the_environment_says_what_and_with_what(done):
    about = done[1]["about"]
    assert about["device"] == {"kind": "cpu"}
    assert {"numpy", "onnxruntime", "torch"} <= about["versions"].keys()
    assert about["command"].startswith("python -m benchmarks.gpu --device cpu")
    assert about["commit"]
