"""A Ray cluster on this machine for all tests here; see `make test-ray`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.ray_processes import wait_until_gone

# a cluster for this test only, with nothing sent to anybody and no file in the user's home
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
os.environ.pop("RAY_ADDRESS", None)
# a proxy that is not ready in five seconds is killed and started anew; a slow machine needs more
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"


@pytest.fixture(scope="session")
def ray_folder():
    """Ray's temporary folder, whose name must be short; at the end no process uses it any more."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    os.environ["RAY_TMPDIR"] = str(folder)
    yield folder
    left = wait_until_gone(folder)
    for process in left:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    assert not left


def pytest_configure(config: pytest.Config) -> None:
    """Ray uses what its own libraries call old; nobody here can change that."""
    for module in ("ray", "opencensus", "google"):
        line = rf"ignore::DeprecationWarning:{module}\..*"
        config.addinivalue_line("filterwarnings", line)
