"""Ctrl-C at any moment of the command, from its start on: one line, and exit status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import eri_runtime

COMMAND = ["inspect", "no-such-bundle"]
LINE = b"eri: stopped\n"
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
            assert (running.returncode, said) == (-number, b"")
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


def test_an_interrupt_of_the_work_unwinds_it(tmp_path):
    """In the command itself it is an exception, so that every file is closed and removed."""
    script = "import sys, os, signal; import eri_runtime.commands.inspect as each\n"
    script += "import eri_runtime.__main__ as command\n"
    script += "def stopped(options):\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
    script += "        while True: pass\n    finally: print('unwound', flush=True)\n"
    script += "each.inspect = stopped\nsys.exit(command.main())"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", script, *COMMAND]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"unwound\n", LINE)


def test_the_package_is_imported_on_first_use():
    status, said, _ = run("-c", "import sys, eri_runtime; print('numpy' in sys.modules)")
    assert (status, said) == (0, b"False\n")
    assert set(eri_runtime.__all__) <= set(dir(eri_runtime))
    assert eri_runtime.errors.EriError is eri_runtime.EriError
    with pytest.raises(AttributeError, match=r"module 'eri_runtime' has no attribute 'nothing'"):
        _ = eri_runtime.nothing
