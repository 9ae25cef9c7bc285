"""Requests made from the OpenAPI document, for AUTOMATIC1111's API and the page's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode

from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import make_app
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models

CASES = 40
# what a request may cause; 504 is for the deadline that it names
STATUSES = (200, 400, 404, 504)
SETTINGS = {
    "max_examples": CASES,
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [hypothesis.Phase.generate],
}
BODIES = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/eri/v1/generate")
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture
def document():
    """The document of a server of its own: schemathesis stops it after each operation."""
    loras = {"fox": Path("fox.safetensors")}
    app = make_app(give_models(FakeEngine(options=EngineOptions(loras=loras))))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", MODES, ids=["fits", "does not fit"])
@pytest.mark.parametrize("path", [*BODIES, "/sdapi/v1/options"])
def test_every_answer_is_typed(document, path, mode):
    answers = Counter()

    @hypothesis.settings(**SETTINGS)
    @hypothesis.given(case=document[path]["POST"].as_strategy(generation_mode=mode))
    def send(case):
        reply = case.call()
        answers[reply.status_code] += 1
        assert reply.status_code in STATUSES, reply.text
        if reply.status_code != 200:
            errors = {"error", "detail", "body", "errors"}
            assert set(reply.json()) == ({"error"} if path.startswith("/eri") else errors)

    send()
    assert answers.total() >= CASES // 2
    if mode is GenerationMode.NEGATIVE:
        assert 400 in answers  # not always: "20" is a number too, as for AUTOMATIC1111
