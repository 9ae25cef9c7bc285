"""Health checks and metrics: `/health/live`, `/health/ready`, `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.errors import Reply
from eri_runtime.serve.http.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["health"])
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "The engine stops, or has no worker."}
}


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Answers as long as the server runs; a supervisor restarts it if not."""
    return {"status": "live"}


@router.get("/health/ready", responses=NOT_READY)
async def ready(request: Request) -> Reply:
    """Answers 200 while the engine accepts requests, else 503; a balancer then goes elsewhere."""
    engine: Engine = request.app.state.engine
    status = engine.status
    is_ready = status.ready and not status.stopping
    word = "ready" if is_ready else "stopping" if status.stopping else "not ready"
    content: dict[str, Any] = {"status": word, "workers": status.workers}
    return Reply(content, 200 if is_ready else 503)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Returns the metrics in Prometheus' text format."""
    found: Metrics = request.app.state.metrics
    return Response(found.text(request.app.state.engine.status), media_type=CONTENT_TYPE)
