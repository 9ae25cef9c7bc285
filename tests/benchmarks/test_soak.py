"""The soak finds what leaks, and a short one runs to its end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import soak
from eri_runtime.errors import BenchmarkError


@pytest.mark.parametrize("slope", [0.0, 40.0, -7.0])
def test_the_slope_of_noise_on_a_line_is_found(slope):
    cycles, rng = np.arange(0, 480, 10), np.random.default_rng(0)
    walk = np.repeat(rng.normal(0, 500, 24), 2)  # neighbours are alike
    found, error = soak.growth(cycles, 1e8 + slope * cycles + walk)
    assert abs(found - slope) < 3 * error
    assert 0 < error < 5


def test_what_grows_only_at_first_is_no_leak():
    cycles = np.arange(48)
    assert soak.growth(cycles, np.minimum(cycles, 11) * 1e6) == (0, 0)


def test_a_short_soak_finds_its_control(sd35_bundle, tmp_path, capsys):
    output = tmp_path / "soak.json"
    numbers = ["--generations", "12", "--swaps", "2", "--opens", "2"]
    soak.main([str(sd35_bundle), *numbers, "-o", str(output)])
    results = json.loads(output.read_text())
    generations, swaps, opens, control = results["rows"]
    assert [row["cycles"] for row in results["rows"][:3]] == [12, 2, 2]
    for row in (generations, opens):  # at its first use a component opens the file of its weights
        assert len(set(row["samples"]["descriptors"][1:])) == 1
    assert len(swaps["samples"]["bytes"]) == 3
    assert control["slopes"]["bytes"]["per_cycle"] > soak.LEAK / 2
    assert control["slopes"]["descriptors"]["per_cycle"] == pytest.approx(1)
    assert "control" in capsys.readouterr().out
    assert results["machine"]["onnxruntime"]


def test_a_control_that_is_not_found_is_an_error(sd35_bundle, monkeypatch):
    monkeypatch.setattr(soak.Leak, "grow", lambda self: None)
    monkeypatch.setattr(soak, "SAMPLES", 4)
    with pytest.raises(BenchmarkError, match="expected that of the control"):
        soak.soak(sd35_bundle, "cpu", 1, 1, 1)
