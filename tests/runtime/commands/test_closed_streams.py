"""The command's output where a stream is closed, or takes no such characters."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from eri_runtime.commands.subcommand import write_line


def test_what_a_stream_cannot_encode_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_line(stream, "ein Käse \udcff.png")
    assert raw.getvalue() == b"ein K\\xe4se \\udcff.png\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_closed_stream_gets_nothing(stream):
    if stream is not None:
        stream.close()
    assert write_line(stream, "x") is None


COMMAND = f'exec "{sys.executable}" -m eri_runtime inspect no-such-bundle'


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_without_streams_has_the_same_status(closed):
    done = subprocess.run(["sh", "-c", f"{COMMAND} {closed}"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stdout + done.stderr


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    script = "from eri_runtime.commands.subcommand import say; say('a'); say('b')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
