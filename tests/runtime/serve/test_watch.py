"""The engine's look at its workers, while everything else is busy."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

from eri_runtime.serve import Engine, EngineOptions
from eri_runtime.serve import engine as engine_module
from eri_runtime.serve.seat import Seat
from tests.support.serving import run


class Hung:
    """A link to a worker that is silent."""

    killed = False

    def kill(self):
        self.killed = True


def test_a_hung_worker_is_killed_while_all_threads_are_busy(monkeypatch):
    monkeypatch.setattr(engine_module, "read_model", lambda *_: None)
    done = threading.Event()

    async def main():
        engine, link = Engine({"none": Path("none")}, EngineOptions(heartbeat=0.1)), Hung()
        engine._workers.seats = [Seat(link=link, heard=monotonic() - 1)]
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))  # it decodes and encodes pictures, too
        busy = loop.run_in_executor(None, done.wait)
        watch = asyncio.create_task(engine._workers.watch())
        await asyncio.sleep(0.5)
        watch.cancel()
        done.set()
        await busy
        return link.killed

    assert run(main())
