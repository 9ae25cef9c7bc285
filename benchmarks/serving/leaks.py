"""Resident memory and descriptors of an engine over thousands of pictures, and a planted leak.

The engine and its worker run in one process, so that everything is counted. The slopes are those of
`benchmarks.soak`; the control leaks on purpose, and the same arithmetic must find it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak import Leak, Phase
from eri_runtime.serve import Engine, EngineOptions, PictureRequest

CYCLES, TOGETHER = 500, 10  # pictures are made ten at a time
WORDS = {"height": 48, "width": 48, "num_inference_steps": 1}


async def soak(bundle: Path) -> dict[str, Any]:
    """Makes 5,000 pictures; passes if nothing grows."""
    row = await _measured(bundle, lambda: None)
    return {**row, "passed": not any(each["leaks"] for each in row["slopes"].values())}


async def control(bundle: Path) -> dict[str, Any]:
    """The same with 16 KiB and a descriptor leaked per ten pictures; passes if both are found."""
    leak = Leak()
    try:
        row = await _measured(bundle, leak.grow)
    finally:
        leak.close()
    found = [row["slopes"][name]["leaks"] for name in ("bytes", "descriptors")]
    return {**row, "passed": all(found)}


async def _measured(bundle: Path, after: Callable[[], None]) -> dict[str, Any]:
    options = EngineOptions(backend="cpu", workers=0)
    async with Engine({"bundle": bundle}, options) as engine:
        loop = asyncio.get_running_loop()

        async def together() -> None:
            requests = [
                PictureRequest(prompt="a red heart", words={**WORDS, "seed": number})
                for number in range(TOGETHER)
            ]
            await asyncio.gather(*(engine.submit(each).pictures() for each in requests))

        def run(_: int) -> None:
            asyncio.run_coroutine_threadsafe(together(), loop).result()
            after()

        row = await asyncio.to_thread(Phase("generations", CYCLES, run).measure)
    return {"pictures": CYCLES * TOGETHER, **row}
