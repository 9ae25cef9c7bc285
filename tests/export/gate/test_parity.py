"""The comparison with PyTorch: what passes, what fails, and what the report says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from eri_export import Metric, Report, export
from eri_export.gate import graph_runs
from eri_export.gate.report import TOLERANCES
from eri_export.publishing import export_bundle as exporter
from eri_runtime.bundle import manifest
from eri_runtime.errors import ParityError
from tests.support.components import STATIC, only

FAMILIES = ["sdxl", "sd35", "flux", "flux_schnell"]
EVERY_CASE = ["sdxl", "sd35", "flux"]  # the largest sizes are slow, and Schnell's graph is Flux's
CASES = "drawn", "smallest", "largest", "one largest", "real", "segments", "form"


def metric(error, **changes):
    values = {
        "component": "denoiser",
        "output": "output",
        "precision": "fp32",
        "subject": "graph",
        "case": "drawn",
        "network": "whole",
        "sizes": {"batch": 1},
        "max_abs": error,
        "max_rel": error,
        "tolerance": 1e-4,
    }
    return Metric(**{**values, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_output_was_compared_on_every_case_and_agrees(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    report = json.loads(bundle.path("parity.json").read_text())
    assert report["passed"] is True
    assert {each["network"] for each in report["metrics"]} == {"whole"}
    for name, spec in bundle.components.items():
        worst = 0.0
        for output in spec.outputs:
            mine = [
                each
                for each in report["metrics"]
                if (each["component"], each["output"]) == (name, output.name)
            ]
            cases = {case: [] for case in CASES}
            for each in mine:
                cases[each["case"]].append(each["sizes"])
            assert {sizes["batch"] for sizes in cases["drawn"]} == {1, 3}
            assert cases["smallest"] == [{key: each.min for key, each in spec.ranges.items()}]
            most = {key: each.max for key, each in spec.ranges.items()}
            left_out = [each["sizes"] for each in report["not_run"] if each["component"] == name]
            if family in EVERY_CASE:
                assert cases["largest"] == [most] or most in left_out
            else:
                assert cases["largest"] == left_out == []
            assert len(cases["one largest"]) == (len(most) if left_out else 0)
            assert [sizes["batch"] for sizes in cases["real"]] == [2]
            assert len(cases["segments"]) == bool(spec.segments)
            assert len(cases["form"]) == (not name.startswith("text_encoder"))
            worst = max(worst, *(each["max_rel"] for each in mine))
        assert 0 < worst == spec.parity <= TOLERANCES["fp32", "graph"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_corrupted_weight_fails_and_nothing_is_published(
    sd35_checkpoint, tmp_path, monkeypatch, precision
):
    write = exporter.write_weights

    def corrupting(file, *arguments):
        written = write(file, *arguments)
        if "denoiser" not in str(file):
            return written
        with file.open("r+b") as stream:
            stream.seek(written.tensors["proj_out.weight"].start)
            stream.write(b"\0" * 16)
        return written

    monkeypatch.setattr(exporter, "write_weights", corrupting)
    with only({"text_encoder", "denoiser"}), pytest.raises(ParityError, match=r"denoiser\.output"):
        export(sd35_checkpoint, tmp_path / "bundle", precision=precision, ranges=STATIC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_fails(sd35_checkpoint, tmp_path, monkeypatch, value):
    run = graph_runs.OrtExecutor.run

    def broken(self, inputs):
        outputs = run(self, inputs)
        next(iter(outputs.values())).reshape(-1)[0] = value
        return outputs

    monkeypatch.setattr(graph_runs.OrtExecutor, "run", broken)
    with pytest.raises(ParityError, match="error of inf"):
        export(sd35_checkpoint, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_report_is_as_true_as_its_worst_metric():
    good, bad = metric(1e-5), metric(1e-3, component="vae_decoder")
    assert Report((good,))
    assert not Report((good, bad))
    with pytest.raises(ParityError, match=r"vae_decoder\.output"):
        (Report((good,)) + Report((bad,))).check()


def test_a_report_on_nothing_has_not_passed():
    assert not Report(())


def test_the_own_graph_counts_where_it_ran():
    own, twin = metric(1e-3, tolerance=1e-2), metric(1e-6, subject="float32 twin")
    assert Report((own, twin)).worst("denoiser") == 1e-3
    assert Report((twin,)).worst("denoiser") == 1e-6


def test_an_infinite_error_is_null_in_json():
    (only,) = json.loads(Report((metric(math.inf),)).to_json())["metrics"]
    assert only["max_rel"] is None
