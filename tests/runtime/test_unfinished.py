"""What is registered to be undone, and steps that are whole or never taken."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from eri_runtime import unfinished
from eri_runtime.partial_files import partial_file, partial_folder, write_whole
from eri_runtime.unfinished import (
    on_stop,
    remove_folder,
    run_child,
    stops_wait,
    temporary_folder,
)


@pytest.fixture(autouse=True)
def registered():
    """Nothing stays registered after a test."""
    yield
    assert unfinished._undo == {}


def test_what_is_registered_is_undone_in_reverse_unless_taken_back(monkeypatch):
    for name, value in {"_stopping": threading.Event(), "_step": threading.RLock()}.items():
        monkeypatch.setattr(unfinished, name, value)
    done = []
    forgets = [on_stop(lambda i=i: done.append(i)) for i in range(4)]
    forgets.append(on_stop(lambda: 1 / 0))  # one that fails does not keep the others
    forgets[1]()
    unfinished.undo_all()
    for forget in forgets:
        forget()
    assert done == [3, 2, 0]


@pytest.mark.parametrize("make", [partial_file, partial_folder])
def test_unfinished_files_are_registered_while_they_are_there(make, tmp_path):
    with make(tmp_path / "a"):
        (left,) = tmp_path.iterdir()
        assert len(unfinished._undo) == 1
        (undo,) = unfinished._undo.values()
        undo()
        assert not left.exists()
        left.mkdir() if make is partial_folder else left.touch()  # as the block would have it


def test_a_temporary_folder_is_removed_at_the_end_and_by_a_stop():
    with temporary_folder() as folder:
        (folder / "a").touch()
        (undo,) = unfinished._undo.values()
        undo()
        assert not folder.exists()
    with temporary_folder() as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_a_child_is_registered_until_it_has_ended():
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_child([sys.executable, "-c", "print('a'); raise SystemExit(3)"], **kinds)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "")
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    results = []
    thread = threading.Thread(target=lambda: results.append(run_child(sleeping)))
    thread.start()
    while not unfinished._undo:
        time.sleep(0.01)
    (undo,) = unfinished._undo.values()
    undo()
    thread.join(10)
    assert results[0].returncode == -signal.SIGKILL


def test_a_folder_is_removed_in_which_files_still_appear(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    ended = threading.Event()

    def write():
        for number in range(200):
            try:
                (folder / str(number)).touch()
            except FileNotFoundError:
                break
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    remove_folder(folder)
    thread.join()
    assert ended.is_set()
    assert not folder.exists()


def test_a_stop_waits_for_a_step_and_none_begins_after_it(tmp_path, monkeypatch):
    """In a real process the threads that wait end with it; here they are let go."""
    monkeypatch.setattr(unfinished, "_stopping", threading.Event())
    monkeypatch.setattr(unfinished, "_step", threading.RLock())
    inside, told = threading.Event(), []

    def step():
        with stops_wait():
            inside.set()
            time.sleep(0.2)
            told.append("completed")

    def after():
        write_whole(tmp_path / "after", b"x")

    first = threading.Thread(target=step, daemon=True)
    first.start()
    assert inside.wait(5)
    unfinished.undo_all()
    assert told == ["completed"]
    second = threading.Thread(target=after, daemon=True)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert not (tmp_path / "after").exists()
    unfinished._stopping.clear()
    unfinished._step.release()
    second.join(5)
    assert (tmp_path / "after").read_bytes() == b"x"


def test_all_that_replaces_files_registers_what_is_unfinished():
    """A rename that completes something is in `stops_wait`, and no process runs unregistered."""
    known = {  # a session's own server, whose workers end with their connection; tiny programs
        "eri_runtime/serve/links.py",
        "eri_runtime/bench/environment.py",
        "eri_export/bench/optimum_worker.py",  # in a worker's process group
    }
    root = Path(unfinished.__file__).parents[1]
    files = [*root.glob("eri_runtime/**/*.py"), *root.glob("eri_export/**/*.py")]
    loose = {
        str(file.relative_to(root))
        for file in files
        if "eri_export/embedded" not in str(file)  # what trained the checkpoints
        and re.search(r"subprocess\.(run|Popen)|partial\.(replace|rename)\(", file.read_text())
        and "stops_wait" not in file.read_text()
    }
    assert loose == known
