"""Ctrl-C at any moment of the command, from its start on: one line, and exit status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import eri_runtime

COMMAND = ["inspect", "no-such-bundle"]
LINE = b"eri: stopped\n"
ROOT = Path(eri_runtime.__file__).parents[1]
# sends the signal at an import, from the first after the command's first instruction on
AT_IMPORT = """
import os, runpy, signal, sys
number, sys.argv = int(sys.argv[1]), ["eri", *sys.argv[2:]]
seen = []
def hook(event, arguments):
    if event == "import" and (seen or arguments[0].startswith("eri_runtime.")):
        seen.append(arguments[0])
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
try:
    runpy.run_module("eri_runtime", run_name="__main__", alter_sys=True)
finally:
    print(len(seen))
"""


@pytest.fixture(autouse=True)
def interruptible():
    """Processes inherit that interrupts are ignored, as behind `&` in a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_an_interrupt_in_an_import_is_one_line():
    status, imports, _ = run("-c", AT_IMPORT, "0", *COMMAND)
    assert status == 2
    count = int(imports)
    assert count > 100, "the command must import something"
    for number in (1, 2, *(count * part // 7 for part in range(1, 7))):
        assert run("-c", AT_IMPORT, str(number), *COMMAND) == (130, b"", LINE), f"import {number}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_a_moment_from_the_start_is_no_traceback(number):
    """Before the command's first instruction it is Python that answers, with whatever it has."""
    begun = time.perf_counter()
    assert run("-m", "eri_runtime", *COMMAND)[0] == 2
    whole = time.perf_counter() - begun
    for part in (0.2, 0.6) if number == signal.SIGINT else (0.5,):
        command = [sys.executable, "-m", "eri_runtime", *COMMAND]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
            time.sleep(part * whole)
            running.send_signal(number)
            _, said = running.communicate()
        if said.startswith(b"eri: no-such-bundle: got "):
            assert running.returncode in (2, -number, 130), "the command had finished"
        elif number == signal.SIGTERM:
            assert (running.returncode, said) in ((-number, b""), (130, LINE))
        elif b"eri: " in said:
            assert (running.returncode, said) == (130, LINE)
        else:
            assert b"eri_runtime/__main__.py" not in said


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them():
    """As with `nohup`, and behind `&` in a shell's script."""
    script = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{AT_IMPORT}"
    status, _, said = run("-c", script, "9", *COMMAND)
    assert status == 2
    assert said.startswith(b"eri: no-such-bundle: got ")


def begin(kind, folder):
    """Starts a kind of work; returns its process, and the lines it said until it was ready."""
    command = [sys.executable, "-m", "tests.support.stopped_work", kind, str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said = []
    while (line := running.stdout.readline()) != b"ready\n":
        assert line, running.communicate()
        said.append(line)
    return running, said


def stop(running, number=signal.SIGINT):
    """Sends a signal; the process ends within 5 s, with the line and the status."""
    time.sleep(0.1)
    running.send_signal(number)
    try:
        said = running.communicate(timeout=5)
    finally:
        running.kill()
    assert (running.returncode, *said) == (130, b"", LINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["in_c", "caught", "in_callbacks", "starting_threads"])
def test_work_that_would_lose_an_exception_is_ended(kind, number, tmp_path):
    running, _ = begin(kind, tmp_path)
    stop(running, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_unfinished_is_removed(number, tmp_path):
    """Files, folders, temporary folders and processes of the command."""
    running, said = begin("unfinished", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    worker = int(said[-1])
    os.kill(worker, 0)
    stop(running, number)
    assert list(tmp_path.iterdir()) == []
    assert is_gone(worker)


def is_gone(process):
    """Whether a process has ended; a killed one may take a moment."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_step_that_completes_a_file_is_taken_whole_or_never(tmp_path):
    running, _ = begin("completing", tmp_path)
    stop(running)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "during"]


@pytest.mark.parametrize("part", [0.25, 0.6, 0.9])
def test_a_picture_is_whole_or_not_there(part, sd35_bundle, tmp_path):
    """At moments of `eri generate`, from the import of NumPy to the last steps."""
    words = ["generate", sd35_bundle, "a", "--steps", "30", "--size", "32x32", "-o", "a.png"]
    command = [sys.executable, "-m", "eri_runtime", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    whole = time.perf_counter() - begun
    (tmp_path / "a.png").unlink()
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(part * whole)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=5)
    left = sorted(path.name for path in tmp_path.iterdir())
    if running.returncode == 130:
        assert said.endswith(LINE)
        assert left in ([], ["a.png"])
    else:  # it had finished
        assert (running.returncode, left) in ((0, ["a.png"]), (-signal.SIGINT, ["a.png"]))
    assert b"Traceback" not in said


def test_the_package_is_imported_on_first_use():
    status, said, _ = run("-c", "import sys, eri_runtime; print('numpy' in sys.modules)")
    assert (status, said) == (0, b"False\n")
    assert set(eri_runtime.__all__) <= set(dir(eri_runtime))
    assert eri_runtime.errors.EriError is eri_runtime.EriError
    with pytest.raises(AttributeError, match=r"module 'eri_runtime' has no attribute 'nothing'"):
        _ = eri_runtime.nothing
