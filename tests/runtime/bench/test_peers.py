"""Peers of `eri bench`: their names, the Python that runs them, and their conversion."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from eri_runtime.bench import plan
from eri_runtime.bench.measure import measure
from eri_runtime.bench.peers import ENVIRONMENT, PEERS, check_peer, peer_names, peer_python
from eri_runtime.bench.plan import candidates
from eri_runtime.bundle import read_bundle
from eri_runtime.commands.bench import make_plan
from eri_runtime.errors import UnknownNameError, UsageError
from tests.support.painted import FAST, ROOT, options_of, painted


def test_every_peer_is_known_by_its_package(monkeypatch, sd35_bundle):
    entry = EntryPoint(name="optimum", value="a.worker:make", group=plan.GROUP)
    monkeypatch.setattr(plan, "entry_points", lambda group: [entry])
    found = candidates(read_bundle(sd35_bundle), [], [], peer_names(), "/peers/python")
    assert [each.name for each in found] == [
        "openvino-genai", "openvino-genai+bf16", "optimum-intel", "optimum-intel+bf16",
        "optimum-onnx",
    ]  # fmt: skip
    assert {(each.kind, each.module, each.python) for each in found} == {
        ("peer", "a.worker", "/peers/python")
    }
    assert [each.precision for each in found] == ["fp32", "bf16", "fp32", "bf16", "fp32"]


@pytest.mark.parametrize("name", ["optimum-openvino", "optimum-onnx+bf16", "genai", "x" * 500, ""])
def test_another_name_is_refused_with_those_that_exist(name):
    with pytest.raises(UnknownNameError, match="openvino-genai, openvino-genai") as raised:
        check_peer(name)
    assert all(each in str(raised.value) for each in PEERS)
    assert len(str(raised.value)) < 400


def test_the_peers_python_is_the_named_one_then_that_of_make_peers_then_this(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert peer_python(None) == sys.executable
    ENVIRONMENT.parent.mkdir(parents=True)
    ENVIRONMENT.symlink_to(sys.executable)
    assert peer_python(None) == str(tmp_path / ENVIRONMENT)  # a link: it leads to its packages
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert peer_python(other) == str(other)
    with pytest.raises(UsageError, match=r"no file .*nothing.*make peers"):
        peer_python(tmp_path / "nothing")


def test_make_peers_makes_the_environment_that_is_found():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PEERS := {ENVIRONMENT.parent.parent}\n" in text
    assert "peers: $(PEERS)/installed" in text


def test_a_peer_runs_in_its_own_python_after_a_conversion(sd35_bundle, tmp_path, monkeypatch):
    """The conversion is in no start: it is a build of its own."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPAINTED_BY="its own" exec {sys.executable} "$@"\n')
    python.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = options_of(sd35_bundle, *FAST, "1", "--cold", "1", "--rounds", "1")
    peer = replace(painted("openvino-genai", "peer", "peer"), python=str(python))
    work = replace(make_plan(options, "x"), candidates=(painted("eri/well"), peer))
    record = measure(work)
    found = record.subject("openvino-genai")
    assert (found.status, found.words) == ("ok", "paint with its own")
    assert record.subject("eri/well").words == "paint with this python"
    assert [each.name for each in record.builds] == ["openvino-genai, conversion"]
    assert len(found.cold_s) == 1  # a new process finds what was converted


def test_a_peer_that_cannot_convert_says_why_and_has_no_figures(record):
    assert "the checkpoint cannot be converted" in record.subject("optimum-onnx").reason
    assert record.row("optimum-onnx", (32, 32)).samples == ()
