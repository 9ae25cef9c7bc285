"""`eri serve` as a process of its own, and requests to it."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

ADDRESS = re.compile(r"http://\S+")
GENERATIONS = "/v1/images/generations"


class Server:
    """A running server.

    Attributes:
        address: Its address, such as `http://127.0.0.1:8000`.
        process: Its process.
    """

    def __init__(self, address: str, process: asyncio.subprocess.Process) -> None:
        self.address, self.process = address, process

    async def post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """Asks for pictures."""
        return await client.post(self.address + GENERATIONS, json=body)


@asynccontextmanager
async def serving(bundle: Path, *options: str) -> AsyncIterator[Server]:
    """Starts `eri serve` on a free port; kills it at the end if it still runs."""
    command = [sys.executable, "-m", "eri_runtime", "serve", str(bundle), "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None  # noqa: S101 it is a pipe
    try:
        async with asyncio.timeout(120):
            found = None
            while found is None:
                found = ADDRESS.search((await process.stdout.readline()).decode())
        yield Server(found[0].rstrip("/"), process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def body_of(words: dict[str, Any]) -> dict[str, Any]:
    """Returns the body of a request of these arguments."""
    return {
        "prompt": words["prompt"],
        "size": f"{words['width']}x{words['height']}",
        "steps": words["num_inference_steps"],
        "sampler": words["sampler"],
        "guidance_scale": words["guidance_scale"],
        "seed": words["seed"],
        "response_format": "b64_json",
    }


def picture_of(reply: httpx.Response) -> np.ndarray:
    """Returns the picture of a reply."""
    raw = base64.b64decode(reply.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(raw)))
