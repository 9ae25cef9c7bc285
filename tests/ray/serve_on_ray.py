"""What `eri serve --ray` runs, with a stand-in for the engine."""

from __future__ import annotations

import sys
from pathlib import Path

from eri_runtime.serve.http.options import ServerOptions
from eri_runtime.serve.ray_app import serve_on_ray
from tests.support.free_port import free_port

if __name__ == "__main__":
    serve_on_ray(
        {"tiny": Path("tiny")},
        server=ServerOptions(port=free_port(), grace=20),
        on_ready=lambda address: print(address, flush=True),  # noqa: T201  to the test
        engine_class="tests.ray.slow_engine:SlowEngine",
    )
    sys.exit(0)
