"""`eri serve --ray`: a cluster of its own, which ends with it, after the requests it accepted."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx

from tests.support.ray_processes import wait_until_gone

ROOT = Path(__file__).parents[2]
ASKED = {"prompt": "a red heart", "response_format": "b64_json", "size": "64x64", "steps": 16}


def test_sigterm_lets_the_accepted_request_finish_and_ends_the_cluster(ray_folder):
    command = [sys.executable, "-m", "tests.ray.serve_on_ray"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            address = server.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), server.stderr.read()
            statuses = []

            def ask():
                reply = httpx.post(f"{address}/v1/images/generations", json=ASKED, timeout=240)
                statuses.append(reply.status_code)

            client = threading.Thread(target=ask)
            client.start()
            client.join(1)  # a request takes four seconds
            server.send_signal(signal.SIGTERM)
            client.join(240)
            _, errors = server.communicate(timeout=240)
        finally:
            server.kill()
    assert statuses == [200]
    assert server.returncode == 0, errors
    assert wait_until_gone(ray_folder) == []
