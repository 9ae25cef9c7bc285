"""Workers of `eri bench` that behave and misbehave: `python -m tests.support.bench_worker`.

The variant says how: `well`, `dark` (draws another picture), `crash`, `hang`, `babble`, `missing`,
`no-conversion`; `…+bf16` says that it computes in bfloat16. A peer needs its conversion.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from PIL import Image

from eri_runtime.bench.worker_server import Drawer, Opened, png_files, serve
from eri_runtime.errors import BackendError


class Painter(Drawer):
    """Paints one colour; what it prints must not reach the parent."""

    def __init__(self, variant):
        self.variant = variant

    def draw(self, job, watch):
        sys.stdout.write("libraries print\n")
        sys.stdout.flush()
        watch.mark("encode")
        for _ in range(job.steps):
            watch.mark("step")
        if job.output is None:
            return
        if self.variant == "crash":
            sys.stderr.write("a reason that was given\n")
            os._exit(3)
        if self.variant == "hang":
            time.sleep(60)
        watch.mark("decode")
        colour = (10, 10, 10) if self.variant == "dark" else (200, 100, 50)
        for file in png_files(job.output, job.images):
            Image.new("RGB", (job.width, job.height), colour).save(file)
        watch.mark("png")


def make(setup):
    if setup.variant == "missing":
        raise BackendError("engine", got="nothing", expected="an engine")
    if setup.variant == "babble":
        os.write(3, b"no JSON\n")  # the answers' own pipe
        time.sleep(60)
    if setup.variant.startswith("peer") and not converted(setup).is_file():
        raise RuntimeError("asked to open before it was converted")
    precision = "bf16" if setup.variant.endswith("+bf16") else "fp32"
    words = f"paint with {os.environ.get('PAINTED_BY', 'this python')}"
    return Painter(setup.variant), Opened(words=words, precision=precision, versions={})


def converted(setup):
    return Path(setup.folder) / "converted"


def convert(setup):
    if setup.variant == "no-conversion":
        raise RuntimeError("the checkpoint cannot be converted")
    new = not converted(setup).is_file()
    converted(setup).touch()
    return new


if __name__ == "__main__":
    serve(make, convert)
