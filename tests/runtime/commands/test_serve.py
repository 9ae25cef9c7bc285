"""`eri serve`: its options, its start, and its end on a signal."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from eri_runtime import executors
from eri_runtime.commands import serve
from eri_runtime.commands.main import main, make_parser
from eri_runtime.commands.serve_options import (
    engine_options,
    named_bundles,
    named_loras,
    server_options,
)
from eri_runtime.errors import UsageError
from eri_runtime.install_hint import install_hint
from eri_runtime.serve import EngineOptions

# runs the command around an engine that a test can make slow
PROGRAM = """
import sys
import eri_runtime.serve
from eri_runtime.commands.main import main
from tests.support.fake_engine import FakeEngine

def engine(bundles, options, observer):
    fake = FakeEngine(tuple(bundles), options, observer)
    fake.delay = float(sys.argv[1])
    fake.start_seconds = float(sys.argv[2])
    return fake

eri_runtime.serve.Engine = engine
sys.exit(main(["serve", *sys.argv[3:]]))
"""
GENERATIONS = "/v1/images/generations"


class Running:
    """The command in a process of its own."""

    def __init__(self, *arguments, delay=0.0, start=0.0):
        command = [sys.executable, "-c", PROGRAM, str(delay), str(start)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def address(self):
        line = self.process.stdout.readline()
        assert line.startswith("serving "), self.process.stderr.read()
        return line.split()[-1]

    def end(self, seconds=20):
        self.process.wait(seconds)
        return self.process.returncode, self.process.stderr.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def options_of(*arguments):
    return make_parser().parse_args(["serve", "bundle", *arguments])


def test_the_defaults_are_the_engines_and_the_servers(monkeypatch):
    from eri_runtime.serve import EngineOptions
    from eri_runtime.serve.http import ServerOptions

    monkeypatch.delenv("ERI_API_KEYS", raising=False)
    assert engine_options(options_of()) == EngineOptions()
    assert server_options(options_of()) == ServerOptions()


def test_every_option_arrives(monkeypatch, tmp_path):
    monkeypatch.setenv("ERI_API_KEYS", "two, three,")
    given = """
        --host :: --port 81 --backend cpu --workers 2 --threads 3 --queue 4 --running 5
        --timeout 6 --heartbeat 7 --grace 8 --max-pixels 9 --max-steps 10 --max-pictures 11
        --memory 1.5GiB --api-key one --cors https://a.example
    """
    for name in ("x", "dog"):
        (tmp_path / f"{name}.safetensors").touch()
    loras = "--lora", f"fox={tmp_path}/x.safetensors", "--lora", f"{tmp_path}/dog.safetensors"
    options = options_of(*given.split(), *loras)
    engine, server = engine_options(options), server_options(options)
    assert (engine.backend, engine.workers, engine.threads) == ("cpu", 2, 3)
    assert (engine.queue, engine.running, engine.timeout, engine.heartbeat) == (4, 5, 6, 7)
    limits = engine.limits
    assert (limits.pixels, limits.steps, limits.pictures) == (9, 10, 11)
    assert engine.memory == 3 * 2**29
    files = {"fox": tmp_path / "x.safetensors", "dog": tmp_path / "dog.safetensors"}
    assert engine.loras == files
    assert (server.host, server.port, server.grace) == ("::", 81, 8)
    assert server.api_keys == ("one", "two", "three")
    assert server.cors == ("https://a.example",)


def test_names_are_unique(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "demo").mkdir(parents=True)
    with pytest.raises(UsageError, match="both named 'demo'"):
        named_bundles([tmp_path / "a" / "demo", tmp_path / "b" / "demo"])
    file = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match="--lora: got no file"):
        named_loras([str(file)])
    file.touch()
    with pytest.raises(UsageError, match="both named 'x'"):
        named_loras([f"x={file}", str(file)])
    with pytest.raises(UsageError, match="no name"):
        named_loras([f"={file}"])
    assert list(named_bundles([Path("engines/demo/"), Path("sdxl")])) == ["demo", "sdxl"]


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(serve, "NEEDED", {"no_such_module": "no-such-package"})
    assert main(["serve", "engines/demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("eri: eri serve: got no no-such-package, expected")
    assert install_hint("serve") in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "70000"], "port: got 70000"),
        (["--host", "no such host"], "--host, --port: got no such host"),
        (["--cors", "example.com"], "cors: got 'example.com'"),
        (["--workers", "-1"], "workers: got -1"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments, text):
    with Running("demo", *arguments) as running:
        status, said = running.end()
    assert status == 2
    assert said.startswith(f"eri: {text}")
    assert said.count("\n") == 1


def test_a_port_in_use_is_one_line_and_status_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Running("demo", "--port", port) as running:
            status, said = running.end()
    assert (status, said.count("\n")) == (2, 1)
    assert port in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_accepted_requests_finish(number):
    with Running("engines/demo", "other", delay=0.3) as running:
        address = running.address()
        models = httpx.get(f"{address}/v1/models").json()["data"]
        assert [each["id"] for each in models] == ["demo", "other"]
        replies = []
        draw = threading.Thread(
            target=lambda: replies.append(
                httpx.post(address + GENERATIONS, json={"prompt": "a", "steps": 6}, timeout=30)
            )
        )
        draw.start()
        time.sleep(0.5)
        running.process.send_signal(number)
        time.sleep(0.2)
        ready = httpx.get(f"{address}/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        refused = httpx.post(address + GENERATIONS, json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_stopping")
        draw.join(20)
        assert replies[0].status_code == 200
        assert replies[0].json()["data"]
        assert running.end() == (0, "")


@pytest.mark.parametrize("way", ["grace", "second signal"])
def test_what_is_left_after_the_grace_gets_503(way):
    grace = "0.5" if way == "grace" else "60"
    with Running("demo", "--grace", grace, delay=30.0) as running:
        address = running.address()
        stream = {"prompt": "a", "stream": True}
        replies = {}

        def draw(kind, body):
            replies[kind] = httpx.post(address + GENERATIONS, json=body, timeout=30)

        threads = [
            threading.Thread(target=draw, args=("plain", {"prompt": "a"})),
            threading.Thread(target=draw, args=("stream", stream)),
        ]
        for each in threads:
            each.start()
        time.sleep(1.5)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        if way == "second signal":
            time.sleep(0.2)
            running.process.send_signal(signal.SIGTERM)
        for each in threads:
            each.join(20)
        status, said = running.end()
    assert time.monotonic() - begun < 10
    assert (status, said) == (0, "")
    assert replies["plain"].status_code == 503
    assert replies["plain"].json()["error"]["code"] == "server_is_stopping"
    assert replies["stream"].status_code == 200
    last = replies["stream"].text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_is_stopping"


def test_a_signal_while_the_engine_starts_ends_the_command():
    with Running("demo", start=60.0) as running:
        time.sleep(3)
        running.process.send_signal(signal.SIGINT)
        assert running.end() == (130, "eri: stopped\n")


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_needs_its_extra(capsys):
    assert main(["serve", "engines/demo", "--ray"]) == 1
    assert install_hint("ray") in capsys.readouterr().err


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(executors, "usable_cores", lambda: 8)
    assert EngineOptions().worker_threads is None
    assert EngineOptions(workers=3).worker_threads == 2
    assert EngineOptions(workers=9).worker_threads == 1
    assert EngineOptions(workers=3, threads=5).worker_threads == 5
    assert EngineOptions(workers=3, threads="auto").worker_threads == 2
    assert EngineOptions(threads="auto").worker_threads == "auto"
