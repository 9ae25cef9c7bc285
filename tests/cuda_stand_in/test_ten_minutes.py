"""The ten minutes on a GPU, rehearsed on the stand-in: the engine is real, its numbers are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import pack, record
from benchmarks.gpu.plan import NAMES
from tests.support.once import once

SCRIPT = Path(pack.__file__).with_name("ten_minutes.sh")


@pytest.fixture(scope="module")
def parts(workshop):
    """A tiny SDXL, as it is and in place of the full-size one."""

    def make(folder):
        words = ["--rehearsal", "--no-wheels", "--models", "tiny-sdxl-fp16", "sdxl"]
        assert pack.main([str(folder), *words]) == 0

    return once(workshop / "parts", make)


@pytest.fixture(scope="module")
def found(parts, workshop):
    """What the script wrote, each stage in a process of its own."""
    out = once(workshop / "ten_minutes", lambda out: rehearse(parts, out))
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


def rehearse(parts, out):
    libraries = Path(__file__).parents[2] / "build" / "cuda_stand_in" / "lib"
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
    }
    words = ["--rehearse", "--steps", "2", "--rounds", "1", "--budget", "3000"]
    ran = subprocess.run(
        [SCRIPT, parts, out, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_script_reaches_its_end_on_the_real_engine(found):
    record.check(found)
    assert found["finished"]
    assert {row["stage"] for row in found["rows"]} == NAMES.keys()
    assert record.failed(found["rows"], garbage=True) == []
    assert all(row["rehearsal"] for row in found["rows"])


def test_every_subject_of_sdxl_was_timed(found):
    timed = {
        (row["stage"], row["subject"]) for row in found["rows"] if row.get("part") == "latency"
    }
    for name, stage in NAMES.items():
        if stage.model == "sdxl" and stage.worker == "measure":
            assert {(name, subject) for subject in stage.subjects_on("cuda")} <= timed
