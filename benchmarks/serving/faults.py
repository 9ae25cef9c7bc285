"""Faults under load: killed and hung workers, bursts, disconnects, shutdowns, leaks.

    eri demo
    python -m benchmarks.serving.faults engines/demo

Each case counts what must hold: no accepted request is lost, and every picture has the bits of the
one made alone. Writes `benchmarks/results/serving_faults.json`; exits with status 1 if one fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.lora_swap import machine
from benchmarks.serving import http_faults, leaks
from benchmarks.serving.drawn_requests import RANDOM, Words, alone, digest, request_of, words_of
from eri_runtime.bench.environment import versions
from eri_runtime.commands.subcommand import say
from eri_runtime.errors import CancelledError, EriError, OutOfMemoryError, OverloadedError
from eri_runtime.serve import Engine, EngineOptions, Pictures, Submission

RESULTS = Path(__file__).parents[1] / "results" / "serving_faults.json"
Case = Callable[[Path], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def engine_on(bundle: Path, **options: Any) -> AsyncIterator[Engine]:
    """Opens an engine with one worker process."""
    words = {"backend": "cpu", "workers": 1, "queue": 1000, "timeout": 600.0, **options}
    async with Engine({"bundle": bundle}, EngineOptions(**words)) as engine:
        yield engine


async def outcome(submission: Submission) -> Pictures | EriError:
    """Waits for a request; returns its pictures or its error."""
    try:
        return await submission.pictures()
    except EriError as error:
        return error


def tally(bundle: Path, found: list[tuple[Words, Pictures | EriError]]) -> dict[str, Any]:
    """Counts right pictures, wrong ones and errors."""
    counts = Counter[str]()
    for words, result in found:
        if isinstance(result, EriError):
            counts[type(result).__name__] += 1
        else:
            right = digest(result.images[0]) == alone(bundle, words)
            counts["right" if right else "wrong"] += 1
    return dict(counts)


async def company(bundle: Path) -> dict[str, Any]:
    """Makes 500 pictures in random company and compares each with the one made alone."""
    drawn = [words_of(seed) for seed in range(500)]
    async with engine_on(bundle) as engine:

        async def one(words: Words) -> tuple[Words, Pictures | EriError]:
            await asyncio.sleep(RANDOM.random() * 30)
            return words, await outcome(engine.submit(request_of(words)))

        found = await asyncio.gather(*map(one, drawn))
    counts = tally(bundle, list(found))
    return {"pictures": len(drawn), **counts, "passed": counts == {"right": len(drawn)}}


async def kills(bundle: Path) -> dict[str, Any]:
    """Kills the worker 50 times while requests come in."""
    count, killed = 50, 0
    found: list[tuple[Words, Pictures | EriError]] = []
    async with engine_on(bundle, attempts=20) as engine:
        tasks: list[asyncio.Task[None]] = []

        async def one(words: Words) -> None:
            found.append((words, await outcome(engine.submit(request_of(words)))))

        seed = 0
        while killed < count:
            for _ in range(4):
                tasks.append(asyncio.create_task(one(words_of(seed))))
                seed += 1
            await asyncio.sleep(0.2 + RANDOM.random() * 1.5)
            link: Any = engine._workers.seats[0].link
            if link is not None and engine.status.running:
                os.kill(link.pid, signal.SIGKILL)
                killed += 1
        await asyncio.gather(*tasks)
        restarts = engine.status.restarts
    counts = tally(bundle, found)
    passed = counts == {"right": len(found)} and restarts == killed
    return {
        "kills": killed,
        "restarts": restarts,
        "accepted": len(found),
        **counts,
        "passed": passed,
    }


async def hang(bundle: Path) -> dict[str, Any]:
    """Stops the worker with SIGSTOP: it is noticed, killed and started anew."""
    async with engine_on(bundle, heartbeat=3.0) as engine:
        drawn = [words_of(seed, most=40) for seed in range(8)]
        submissions = [engine.submit(request_of(each)) for each in drawn]
        await anext(aiter(submissions[0]))
        link: Any = engine._workers.seats[0].link
        started = time.monotonic()
        os.kill(link.pid, signal.SIGSTOP)
        while not engine.status.restarts:
            await asyncio.sleep(0.01)
        noticed = time.monotonic() - started
        results = await asyncio.gather(*map(outcome, submissions))
    counts = tally(bundle, list(zip(drawn, results, strict=True)))
    return {
        "heartbeat_s": 3.0,
        "noticed_s": round(noticed, 2),
        **counts,
        "passed": counts == {"right": len(drawn)},
    }


async def burst(bundle: Path) -> dict[str, Any]:
    """Submits ten times as many requests as the queue holds, at once."""
    queue, waits = 16, list[float]()
    async with engine_on(bundle, queue=queue) as engine:
        await outcome(engine.submit(request_of(words_of(0))))  # so that a step was timed
        accepted: list[tuple[Words, Submission]] = []
        for seed in range(10 * queue):
            words = words_of(seed)
            try:
                accepted.append((words, engine.submit(request_of(words))))
            except OverloadedError as error:
                waits.append(error.retry_after)
        results = await asyncio.gather(*(outcome(each) for _, each in accepted))
    pairs = [(words, result) for (words, _), result in zip(accepted, results, strict=True)]
    counts = tally(bundle, pairs)
    return {
        "queue": queue,
        "submitted": 10 * queue,
        "accepted": len(accepted),
        "refused": len(waits),
        "retry_after_s": [round(min(waits), 2), round(max(waits), 2)],
        **counts,
        "passed": counts == {"right": queue} and len(waits) == 9 * queue and min(waits) > 0,
    }


async def cancels(bundle: Path) -> dict[str, Any]:
    """Cancels 200 requests at random moments, beside others that must be right."""
    async with engine_on(bundle) as engine:

        async def doomed(seed: int) -> str:
            await asyncio.sleep(RANDOM.random() * 20)
            submission = engine.submit(request_of(words_of(seed, most=40)))
            asyncio.get_running_loop().call_later(RANDOM.random(), submission.cancel)
            return type(await outcome(submission)).__name__

        async def kept(words: Words) -> tuple[Words, Pictures | EriError]:
            await asyncio.sleep(RANDOM.random() * 20)
            return words, await outcome(engine.submit(request_of(words)))

        drawn = [words_of(1000 + seed) for seed in range(60)]
        ends, found = await asyncio.gather(
            asyncio.gather(*map(doomed, range(200))), asyncio.gather(*map(kept, drawn))
        )
        left = len(engine.submissions)
    counts, cancelled = tally(bundle, list(found)), ends.count(CancelledError.__name__)
    expected = {CancelledError.__name__, Pictures.__name__}
    return {
        "cancelled": cancelled,
        "finished_before": ends.count(Pictures.__name__),
        **counts,
        "passed": counts == {"right": len(drawn)} and set(ends) <= expected and left == 0,
    }


async def memory(bundle: Path) -> dict[str, Any]:
    """Makes one request run out of memory in the engine, beside others."""
    from eri_runtime.pipeline import Pipeline

    step, prompt = Pipeline.step, "too large"

    def scarce(self: Pipeline, generations: Any) -> Any:
        if any(str(each.request.prompts[0]) == prompt for each in generations):
            raise OutOfMemoryError("denoiser", got="no memory", expected="some")
        return step(self, generations)

    Pipeline.step = scarce
    try:
        async with engine_on(bundle, workers=0) as engine:
            drawn = [words_of(seed) for seed in range(12)]
            submissions = [engine.submit(request_of(each)) for each in drawn]
            large = engine.submit(request_of({**words_of(99), "prompt": prompt}))
            failed = await outcome(large)
            results = await asyncio.gather(*map(outcome, submissions))
    finally:
        Pipeline.step = step
    counts = tally(bundle, list(zip(drawn, results, strict=True)))
    return {
        "the large one": type(failed).__name__,
        **counts,
        "passed": counts == {"right": len(drawn)} and isinstance(failed, OutOfMemoryError),
    }


CASES: Mapping[str, Case] = {
    "500 pictures in random company": company,
    "50 workers killed under load": kills,
    "a worker that hangs": hang,
    "a burst of ten times the queue": burst,
    "200 requests cancelled": cancels,
    "out of memory beside others": memory,
    "200 clients that disconnect": http_faults.disconnects,
    "SIGTERM under load": http_faults.shutdown,
    "5,000 pictures": leaks.soak,
    "5,000 pictures, the control": leaks.control,
}


def main() -> int:
    """Runs the cases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle of the embedded SD3.5")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=CASES)
    options = parser.parse_args()
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if options.only else {}
    cases = dict(stored.get("cases", {}))
    for name in options.only or CASES:
        started = time.monotonic()
        case = asyncio.run(CASES[name](options.bundle))
        cases[name] = {**case, "seconds": round(time.monotonic() - started, 1)}
        say(f"{name}: {cases[name]}")
        record = {
            "machine": machine(),
            "versions": versions(("onnxruntime", "numpy")),
            "cases": cases,
        }
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(each["passed"] for each in cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
