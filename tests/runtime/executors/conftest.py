"""What the tests of the TensorRT executor share: plans, and the stand-in's GPU."""

from __future__ import annotations

import pytest

from tests.support import stand_in_trt as stand_in


@pytest.fixture(scope="module")
def planned(sd35_bundle, tmp_path_factory):
    """A bundle with a plan for every graph."""
    return stand_in.with_plans(sd35_bundle, tmp_path_factory.mktemp("plans") / "sd35")


@pytest.fixture
def device(monkeypatch, tmp_path):
    """The stand-in's GPU and an empty cache folder; at the end nothing is left on the GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = stand_in.install(monkeypatch)
    yield found
    assert found.left() == []
