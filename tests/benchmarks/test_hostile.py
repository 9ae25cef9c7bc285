"""A few cases of `benchmarks.hostile`, which resumes and counts."""

from __future__ import annotations

import json
import os

from benchmarks import hostile
from benchmarks.hostile_cases import CAMPAIGNS


def test_a_few_cases_and_a_resumed_run(sd35_bundle, tmp_path, monkeypatch):
    work, output = tmp_path / "work", tmp_path / "hostile.json"
    arguments = [str(sd35_bundle), "--small", "--work", str(work), "-o", str(output)]
    assert hostile.main(arguments) == 0
    report = json.loads(output.read_text())
    assert report["cases"] == len(CAMPAIGNS) * hostile.SMALL
    assert not any(report[kind] for kind in hostile.WRONG)
    log = work / "cases-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == report["cases"]
    log.write_text("".join(lines)[:-9])  # torn: its last case runs again
    monkeypatch.setattr(hostile.Child, "run", lambda *_: {"kind": "hang", "seconds": 9.0})
    assert hostile.main(arguments) == 1
    again = json.loads(output.read_text())
    assert (again["hang"], again["cases"]) == (1, report["cases"])


def test_a_child_that_hangs_or_dies_is_replaced(tmp_path):
    kinds = ("sleep", "die", "sleep")
    with hostile.Child(tmp_path, tmp_path, 0.5, misbehave) as child:
        outcomes = [child.run(kind, 0, 0)["kind"] for kind in kinds]
    assert outcomes == ["hang", "crash", "hang"]


def misbehave(connection, *_):
    """A child process that never answers, or dies, as the campaign's name says."""
    connection.send("ready")
    campaign, _, _ = connection.recv()
    while campaign == "sleep":
        connection.recv()
    os._exit(1)  # at once: the interpreter's own end may take longer than the limit
