"""Health checks, and what the metrics say after a few requests."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from eri_runtime.errors import NonFiniteError, OverloadedError
from eri_runtime.serve import StepTime
from eri_runtime.serve.http import Metrics, ServerOptions, make_app
from eri_runtime.serve.http.metrics import MOST_SIZES
from tests.support.fake_engine import FakeEngine

GENERATIONS = "/v1/images/generations"


def samples(text):
    """The values by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def watched():
    """An engine that a registry observes, and a client of its app."""
    metrics = Metrics()
    engine = FakeEngine(observer=metrics)
    with TestClient(make_app(engine, ServerOptions(), metrics)) as client:
        yield engine, client


def test_a_server_is_live_and_ready(client, engine):
    assert client.get("/health/live").json() == {"status": "live"}
    reply = client.get("/health/ready")
    assert (reply.status_code, reply.json()) == (200, {"status": "ready", "workers": 1})
    engine.ready = False
    assert client.get("/health/ready").json()["status"] == "not ready"
    engine.ready, engine.stopping = True, True
    reply = client.get("/health/ready")
    assert (reply.status_code, reply.json()["status"]) == (503, "stopping")
    assert client.get("/health/live").status_code == 200
    reply = client.post(GENERATIONS, json={"prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_is_stopping")
    assert reply.headers["retry-after"]


def test_the_engine_lives_as_long_as_the_app():
    engine = FakeEngine()
    app = make_app(engine)
    assert not engine.started
    with TestClient(app):
        assert engine.started
    assert engine.stopping
    assert engine.closed


def test_metrics_count_what_happened(watched):
    engine, client = watched
    for body in ({"n": 2, "steps": 3}, {"stream": True, "partial_images": 1}):
        assert client.post(GENERATIONS, json={"prompt": "a", **body}).status_code == 200
    engine.fault = NonFiniteError("latents", got="NaN", expected="numbers")
    client.post(GENERATIONS, json={"prompt": "a"})
    engine.refusals = [OverloadedError("queue", got="a", expected="b")]
    client.post(GENERATIONS, json={"prompt": "a"})
    engine.observer.restarted()
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    found = samples(reply.text)
    model, size = ("model", "tiny"), ("size", "64x64")
    expected = {
        ("eri_requests_total", model, ("outcome", "finished")): 2,
        ("eri_requests_total", model, ("outcome", "failed")): 1,
        ("eri_request_seconds_count", model, ("outcome", "finished")): 2,
        ("eri_request_wait_seconds_sum", model): 1.5,
        ("eri_first_preview_seconds_count", model): 1,
        ("eri_first_preview_seconds_sum", model): 0.25,
        ("eri_pictures_total", model): 3,
        ("eri_requests_refused_total", ("reason", "OverloadedError")): 1,
        ("eri_worker_restarts_total",): 1,
        ("eri_step_seconds_count", model, size): 7,
        ("eri_step_seconds_bucket", ("le", "0.05"), model, size): 7,
        ("eri_step_seconds_bucket", ("le", "0.02"), model, size): 0,
        ("eri_step_batch_requests_sum", model, size): 7,
        ("eri_step_batch_rows_sum", model, size): 3 * 4 + 4 * 2,
        ("eri_ready",): 1,
        ("eri_stopping",): 0,
        ("eri_workers",): 1,
        ("eri_requests_running",): 0,
        ("eri_requests_waiting",): 0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["process_open_fds",] > 0


def test_two_apps_share_no_metrics():
    first, second = Metrics(), Metrics()
    first.restarted()
    status = FakeEngine().status
    assert samples(first.text(status).decode())["eri_worker_restarts_total",] == 1
    assert samples(second.text(status).decode())["eri_worker_restarts_total",] == 0


def test_sizes_that_clients_choose_do_not_make_series_without_end():
    metrics = Metrics()
    for width in range(16, 16 + 3 * MOST_SIZES):
        metrics.stepped(
            StepTime(model="tiny", width=width, height=8, requests=1, rows=1, seconds=1.0)
        )
    found = samples(metrics.text(FakeEngine().status).decode())
    counts = {key[2]: value for key, value in found.items() if key[0] == "eri_step_seconds_count"}
    assert len(counts) == MOST_SIZES + 1
    assert counts["size", "other"] == 2 * MOST_SIZES
