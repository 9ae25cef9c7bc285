"""What HTTP, queue and scheduler add to a picture, beside calls of the same pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx

import eri_runtime as eri
from benchmarks.serving.server_process import serving
from eri_runtime.serve import Engine, EngineOptions, PictureRequest

SIZE = 48
FEW, MANY = 4, 44  # steps; their difference gives the cost of a step
ROUNDS = 30
PAUSE = 0.1  # seconds until the threads of the way before have gone to sleep


def overheads(bundle: Path) -> dict[str, Any]:
    """Returns the milliseconds that serving adds to a picture and to a step."""
    return asyncio.run(_overheads(bundle))


async def _overheads(bundle: Path) -> dict[str, Any]:
    words = {"height": SIZE, "width": SIZE, "guidance_scale": 4.0, "seed": 0}
    options = EngineOptions(backend="cpu", workers=1)
    with eri.load(bundle, "cpu", loop="numpy") as pipe:
        async with (
            Engine({"bundle": bundle}, options) as engine,
            serving(bundle, "--backend", "cpu") as server,
            httpx.AsyncClient(timeout=60) as client,
        ):

            async def alone(steps: int) -> None:
                pipe("a red heart", num_inference_steps=steps, **words)

            async def submitted(steps: int) -> None:
                more = {**words, "num_inference_steps": steps}
                await engine.submit(PictureRequest(prompt="a red heart", words=more)).pictures()

            async def posted(steps: int) -> None:
                body = {
                    "prompt": "a red heart",
                    "size": f"{SIZE}x{SIZE}",
                    "steps": steps,
                    "guidance_scale": 4.0,
                    "seed": 0,
                    "response_format": "b64_json",
                }
                (await server.post(client, body)).raise_for_status()

            ways = {"pipeline": alone, "engine": submitted, "HTTP": posted}
            for way in ways.values():
                await way(FEW)  # opens everything
            times = await _in_turns(ways)
    return _table(times)


Way = Callable[[int], Awaitable[None]]
Times = dict[str, dict[int, list[float]]]


async def _in_turns(ways: dict[str, Way]) -> Times:
    """Times every way with few steps and with many, one after the other in each round."""
    times: Times = {name: {FEW: [], MANY: []} for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for steps in (FEW, MANY):
                await asyncio.sleep(PAUSE)
                started = time.perf_counter()
                await way(steps)
                times[name][steps].append(time.perf_counter() - started)
    return times


def _table(times: Times) -> dict[str, Any]:
    """Returns medians, and what engine and HTTP add to the pipeline's, in milliseconds."""
    medians = {
        name: {steps: 1e3 * median(values) for steps, values in each.items()}
        for name, each in times.items()
    }
    step = {name: (each[MANY] - each[FEW]) / (MANY - FEW) for name, each in medians.items()}
    rest = {name: each[FEW] - FEW * step[name] for name, each in medians.items()}
    return {
        "pipeline_ms": {
            "a step": round(step["pipeline"], 3),
            "the rest": round(rest["pipeline"], 2),
        },
        "added_ms": {
            name: {
                "to a step": round(step[name] - step["pipeline"], 3),
                "to a picture": round(rest[name] - rest["pipeline"], 2),
            }
            for name in ("engine", "HTTP")
        },
        "goals": {"to a step": "<= 0.2", "to a picture": "<= 3"},
    }
