"""`threads="auto"`: what is measured, kept, and read again."""

from __future__ import annotations

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.commands.main import make_parser
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.executors import choose, processor, thread_count
from eri_runtime.executors.ort.backend import CUDA
from eri_runtime.executors.thread_count import ThreadChoice, check_threads, fastest, numbers
from tests.support.bundle_copies import uncompiled_copy

WORDS = {"height": 32, "width": 32, "num_inference_steps": 1, "seed": 3, "output_type": "latent"}


@pytest.fixture
def root(sd35_bundle, tmp_path, monkeypatch):
    """A copy of a bundle beside which nothing is kept, and an empty cache folder."""
    return uncompiled_copy(sd35_bundle, tmp_path, monkeypatch)


@pytest.fixture
def measured(monkeypatch):
    """Four cores, of which two are the fastest; gives every number that is tried."""
    tried = []
    monkeypatch.setattr(thread_count, "usable_cores", lambda: 4)
    seconds = {4: 2.0, 2: 1.0, 1: 1.5}

    def seconds_of_run(executor, inputs):
        executor.run(inputs)
        tried.append(executor.executor._session.get_session_options().intra_op_num_threads)
        return seconds[tried[-1]]

    monkeypatch.setattr(thread_count, "seconds_of_run", seconds_of_run)
    return tried


def kept(root):
    """The findings beside a bundle."""
    return sorted((root / "compiled").glob("*.threads"))


def test_the_fastest_number_is_kept_beside_the_bundle(root, measured):
    for _ in range(2):
        engine = choose(eri.read_bundle(root), "cpu", threads="auto")
        assert engine.settings.threads == 2
        assert engine.settings.cache
    assert measured == [4, 2, 1]  # by the first engine
    assert len(kept(root)) == 1
    assert choose(eri.read_bundle(root), "cpu", threads="auto", low_memory=True).settings.threads
    assert len(kept(root)) == 2


def test_nothing_is_kept_without_a_cache(root, measured):
    for _ in range(2):
        engine = choose(eri.read_bundle(root), "cpu", threads="auto", cache=False)
        assert engine.settings.threads == 2
    assert measured == [4, 2, 1] * 2
    assert not kept(root)


def test_a_finding_of_more_cores_than_there_are_is_not_used(root, measured, monkeypatch):
    choose(eri.read_bundle(root), "cpu", threads="auto")
    monkeypatch.setattr(thread_count, "usable_cores", lambda: 1)
    assert choose(eri.read_bundle(root), "cpu", threads="auto").settings.threads == 1


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_picture_is_that_of_the_same_number_of_threads(root, backend, monkeypatch):
    monkeypatch.setattr(thread_count, "RUNS", 1)
    latents = []
    for threads in ("auto", "auto", None):
        if threads is None:
            threads = choose(eri.read_bundle(root), backend, threads="auto").settings.threads
        with eri.load(root, backend, threads=threads) as pipe:
            latents.append(pipe("a red heart", **WORDS).latents)
    assert len(kept(root)) == 1
    np.testing.assert_array_equal(latents[0], latents[1])
    np.testing.assert_array_equal(latents[0], latents[2])


def test_an_engine_that_cannot_be_measured_uses_all_cores(root, monkeypatch, caplog):
    def fails(*_):
        raise BackendError("denoiser", got="no memory", expected="some")

    monkeypatch.setattr(thread_count, "seconds_of_run", fails)
    assert choose(eri.read_bundle(root), "cpu", threads="auto").settings.threads is None
    assert "all cores are used" in caplog.text
    assert not kept(root)


def test_a_gpu_measures_nothing(sd35_bundle):
    bundle = eri.read_bundle(sd35_bundle)
    choice = ThreadChoice(bundle=bundle, backend=CUDA, settings=thread_count.Settings())
    assert choice.find(lambda threads: pytest.fail("it is opened")) is None


def test_halves_are_tried_while_they_are_faster(monkeypatch):
    monkeypatch.setattr(thread_count, "usable_cores", lambda: 16)
    tried = []

    class Opened:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            tried.append(self.number)
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(thread_count, "seconds_of_run", lambda opened, _: opened.number % 3 + 1)
    assert list(numbers(12)) == [12, 6, 3, 1]
    assert fastest(Opened, {}) == 16  # 2 s, and 8 threads take 3 s
    assert tried == [16, 8]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_limit_of_the_control_group_counts(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "cores", lambda: 8)
    second = "cpu.max" in files
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n" if second else "3:cpu,cpuacct:/a/b\n")
    kind = "cgroup2 cgroup2 rw" if second else "cgroup cgroup rw,cpu,cpuacct"
    device, rest = kind.split(" ", 1)
    (tmp_path / "proc/self/mounts").write_text(f"{device} /sys/fs/cgroup {rest} 0 0\n")
    group = tmp_path / "sys/fs/cgroup/a"  # an ancestor
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(text + "\n")
    assert processor.usable_cores(tmp_path) == cores


def test_the_affinity_mask_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert processor.usable_cores(tmp_path) == 3


@pytest.mark.parametrize("value", ["Auto", "", "2", 0, 1025, 1.5, True])
def test_other_words_and_numbers_are_refused(value):
    with pytest.raises(UsageError, match="threads: got"):
        check_threads(value)


@pytest.mark.parametrize(("text", "threads"), [("auto", "auto"), ("3", 3)])
def test_the_commands_take_the_word(text, threads):
    for command in (["generate", "engines/demo", "x"], ["serve", "engines/demo"]):
        assert make_parser().parse_args([*command, "--threads", text]).threads == threads


def test_the_command_refuses_other_words(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["generate", "engines/demo", "x", "--threads", "most"])
    assert "expected auto or an integer" in capsys.readouterr().err
