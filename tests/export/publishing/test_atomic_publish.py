"""A bundle appears complete or not at all, and its hashes are right."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import signal
import threading
import traceback
from multiprocessing import get_context

import pytest

from eri_export import export
from eri_export.publishing.atomic_publish import records, staging
from eri_export.publishing.export_bundle import ORDER
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import FileRecord
from eri_runtime.errors import UsageError
from tests.support.bundles import interrupted, make_bundle, published
from tests.support.checkpoints import all_files

publish = importlib.import_module("eri_export.publishing.atomic_publish")


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_every_file_is_in_the_manifest_with_its_size_and_sha256(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    files = {path.relative_to(bundle.root).as_posix(): path for path in all_files(bundle.root)}
    del files["manifest.json"]
    files = {name: path for name, path in files.items() if not name.startswith("compiled/")}
    assert set(bundle.files) == set(files)
    for name, path in files.items():
        raw = path.read_bytes()
        assert bundle.files[name].size == len(raw)
        assert bundle.files[name].sha256 == hashlib.sha256(raw).hexdigest()


def test_nothing_but_the_bundle_is_left(tmp_path):
    published(tmp_path / "new" / "demo", "one")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo"]
    assert (tmp_path / "new" / "demo" / "note.txt").read_text() == "one"


def test_an_exception_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_the_old_bundle(tmp_path):
    target = published(tmp_path / "demo", "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert (target / "note.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exchange", [publish._exchange, lambda _one, _other: False])
def test_a_new_bundle_replaces_the_old(tmp_path, monkeypatch, exchange):
    monkeypatch.setattr(publish, "_exchange", exchange)
    target = published(tmp_path / "demo", "old")
    published(target, "new")
    assert (target / "note.txt").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_rename_leaves_the_old_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_exchange", lambda _one, _other: False)
    target = published(tmp_path / "demo", "old")
    rename = type(target).rename

    def failing(self, to):
        if self.suffix == ".partial":
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        published(target, "new")
    assert (target / "note.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_always_sees_a_whole_bundle(tmp_path):
    target, seen, done = published(tmp_path / "demo", "0"), set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add((target / "manifest.json").exists())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        published(target, str(number))
    done.set()
    reader.join()
    assert seen == {True}


# signals


def terminated(target):
    with staging(target) as folder:
        make_bundle(folder, "new")
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What failed of each check, in a process of its own: it ends where no handler is found."""
    checks = (leaves_no_trace, publishes_nothing, keeps_its_own_handler)
    folders = [tmp_path_factory.mktemp("signals") for _ in checks]
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=run_alone, args=(there, checks, folders))
    process.start()
    there.close()
    found = {}
    with contextlib.suppress(EOFError):  # it ended early
        while True:
            found |= [here.recv()]
    process.join()
    return found


def run_alone(pipe, checks, folders):
    """Send the name of each check and its traceback, "" if it passed."""
    for check, folder in zip(checks, folders, strict=True):
        try:
            check(folder)
        except BaseException:
            pipe.send((check.__name__, traceback.format_exc()))
        else:
            pipe.send((check.__name__, ""))


def test_sigterm_leaves_no_trace_and_the_handler_as_it_was(faults):
    assert faults["leaves_no_trace"] == ""


def leaves_no_trace(folder):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        terminated(folder / "demo")
    assert not list(folder.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def lost(target):
    with staging(target) as folder:
        make_bundle(folder, "new")
        with contextlib.suppress(KeyboardInterrupt):  # as Python does inside a finaliser
            signal.raise_signal(signal.SIGTERM)


def test_a_sigterm_that_got_lost_publishes_nothing(faults):
    assert faults["publishes_nothing"] == ""


def publishes_nothing(folder):
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        lost(folder / "demo")
    assert not list(folder.iterdir())
    published(folder / "demo", "next")
    assert (folder / "demo").is_dir()


def test_a_handler_of_the_programs_own_is_kept(faults):
    assert faults["keeps_its_own_handler"] == ""


def keeps_its_own_handler(_folder):
    def own(_number, _frame):
        caught.append(True)

    caught: list[bool] = []
    signal.signal(signal.SIGTERM, own)
    with publish.terminated_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert caught == [True]


def test_in_another_thread_no_handler_is_set(tmp_path):
    seen = []

    def export_there():
        with staging(tmp_path / "demo") as folder:
            seen.append(signal.getsignal(signal.SIGTERM))
            make_bundle(folder, "new")

    thread = threading.Thread(target=export_there)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
    assert (tmp_path / "demo" / "note.txt").read_text() == "new"


def test_what_was_hashed_when_it_was_written_is_not_read_again(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    known, read, record = FileRecord(size=3, sha256="given"), [], publish.file_record
    monkeypatch.setattr(publish, "file_record", lambda path: read.append(path.name) or record(path))
    found = records(tmp_path, {"one": known})
    assert found == {"one": known, "two": record(tmp_path / "two")}
    assert read == ["two"]


@pytest.mark.parametrize("make", ["touch", "mkdir"])
def test_what_is_not_a_bundle_is_not_replaced(sd35_checkpoint, tmp_path, make):
    getattr(tmp_path / "photos", make)()
    with pytest.raises(UsageError, match="photos"):
        export(sd35_checkpoint, tmp_path / "photos")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_progress_ends_at_the_total_of_every_part(sd35_checkpoint, tmp_path):
    told = []
    bundle = export(sd35_checkpoint, tmp_path / "demo", progress=told.append)
    assert manifest.read(bundle.root) == bundle
    parts = list(dict.fromkeys((each.component, each.stage) for each in told))
    stages = itertools.product(ORDER, ("trace", "write", "compare"))
    assert parts == [*stages, ("bundle", "publish")]
    for part in parts:
        own = [each for each in told if (each.component, each.stage) == part]
        (total,) = {each.total for each in own}
        counts = [each.done for each in own]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, total)
        assert len(counts) > 10 if part[1] == "write" else counts == [0, 1]
        if part[1] == "write":
            size = bundle.files[bundle.components[part[0]].weights].size
            assert 0.5 * size < total < size  # a tiny file is half header
