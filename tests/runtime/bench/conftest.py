"""A run of workers that only paint, for all tests of `eri bench`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eri_runtime.bench.measure import measure
from eri_runtime.commands.bench import make_plan
from tests.support.browser import browser, chromium  # noqa: F401 fixtures
from tests.support.painted import FAST, ROOT, options_of, painted


@pytest.fixture(scope="package")
def record(sd35_bundle):
    """A run of workers that only paint: two that do well, and one of each that does not."""
    options = options_of(sd35_bundle, *FAST, "1", "--cold", "1", "--backends", "cpu")
    candidates = (
        painted("torch/eager", "torch", "well"),
        painted("torch/compile", "torch", "well"),
        painted("eri/well"),
        painted("eri/dark"),
        painted("eri/crash"),
        painted("eri/missing"),
        replace(painted("peer", "peer", "x"), module=None),
        painted("eri/well:bf16", variant="well+bf16"),
        painted("openvino-genai", "peer", "peer"),
        painted("openvino-genai+bf16", "peer", "peer+bf16"),
        painted("optimum-onnx", "peer", "no-conversion"),
    )
    plan = replace(make_plan(options, "eri bench --made-by=tests"), candidates=candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return measure(plan)
