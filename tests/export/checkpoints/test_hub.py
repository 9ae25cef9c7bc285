"""Ids of the Hub against a server that speaks its API, and folders of its cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from eri_export import open_checkpoint
from eri_export.checkpoints import sources
from eri_export.checkpoints.sources.folder import open_folder
from eri_export.checkpoints.sources.hub import needed_files, resolve
from eri_runtime import errors
from eri_runtime.bundle.hub import Repository
from eri_runtime.errors import (
    CheckpointError,
    HubError,
    NotACheckpointError,
    PickleError,
    UsageError,
)
from tests.support.checkpoints import all_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = ("HF_", "TRANSFORMERS_")  # of the Hub's library, by the environment
TOKEN = "hf_of_an_account_with_the_licence"  # noqa: S105
WEIGHTS = "diffusion_pytorch_model.safetensors"
# what published repositories hold beside what an export reads
DECOYS = (
    "README.md",
    "LICENSE.md",
    ".gitattributes",
    "sd3_medium.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "transformer/README.md",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.xml",
    "vae_decoder/model.onnx",
    "text_encoders/clip_l.safetensors",
    "transformer/nested/diffusion_pytorch_model.safetensors",
)

CALLS = """
import json, sys
from eri_export.checkpoints.sources.hub import resolve
from eri_runtime.errors import EriError
for text, words in json.load(sys.stdin):
    try:
        print(json.dumps(["path", str(resolve(text, **words))]))
    except EriError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@dataclass
class Hub:
    """A server of repositories, each a folder; `seen` is every request and its token."""

    repositories: dict[str, Path]
    readers: dict[str, str]  # of the gated ones: whose token opens it
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self, name: str) -> set[str]:
        """The files of a repository whose bytes were asked for."""
        start = f"/{name}/resolve/{COMMIT}/"
        return {
            path.removeprefix(start)
            for method, path, _ in self.seen
            if method == "GET" and path.startswith(start)
        }

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if listing else parts
        root = self.repositories.get(f"{owner}/{name}")
        if root is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if rest[1:2] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if listing:
            return 200, {"Content-Type": "application/json"}, self.listed(root, rest[:1])
        if self.readers.get(f"{owner}/{name}", token) != token:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        file = root.joinpath(*rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = file.read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body

    def listed(self, root: Path, what: list[str]) -> bytes:
        """The list of files, as `model_info` or as the tree reads it."""
        files = [(str(file.relative_to(root)), file) for file in all_files(root)]
        if what == ["tree"]:
            rows = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in files
            ]
            return json.dumps(rows).encode()
        names = [{"rfilename": name} for name, _ in files]
        return json.dumps({"id": "o/n", "sha": COMMIT, "siblings": names}).encode()


@contextlib.contextmanager
def serving(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            token = self.headers.get("Authorization")
            hub.seen.append((self.command, self.path, token))
            status, headers, body = hub.answer(self.path, token)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def resolved(calls, home, **environment):
    """What `resolve` gives for each call in a process of its own: the Hub's settings are read once.

    A call is (text, keywords); a result is ("path", path) or (the error's class, its text).
    """
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps(calls),
        env={
            **{key: os.environ[key] for key in os.environ if not key.startswith(SETTINGS)},
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
        cwd=home.parent,
        timeout=120,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def published(sd35_checkpoint, tmp_path_factory) -> Path:
    """A repository with everything that published ones hold."""
    root = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(sd35_checkpoint, root)
    for name in DECOYS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not wanted")
    shutil.copyfile(
        root / "vae" / WEIGHTS, root / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    return root


@pytest.fixture(scope="module")
def hub(published):
    names = ("eri/tiny", "eri/half", "eri/file", "eri/licensed", "eri/gated")
    readers = {"eri/licensed": f"Bearer {TOKEN}", "eri/gated": "Bearer hf_of_another"}
    with serving(Hub(dict.fromkeys(names, published), readers)) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub") / "home"


@pytest.fixture(scope="module")
def online(hub, home):
    """The results of one process, by what was asked."""
    calls = {
        "tiny": ("eri/tiny", {}),
        "half": ("eri/half", {"variant": "fp16"}),
        "bf8": ("eri/half", {"variant": "bf8"}),
        "file": ("eri/file:sd3_medium.safetensors", {}),
        "no-file": ("eri/file:other.safetensors", {}),
        "missing": ("eri/nothing", {}),
        "revision": ("eri/tiny", {"revision": "v9"}),
        "commit": ("eri/tiny", {"revision": COMMIT}),
        "invalid": ("eri/two..dots", {}),
        "licensed": ("eri/licensed", {}),
        "gated": ("eri/gated", {}),
    }
    results = resolved([*calls.values()], home, HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    return dict(zip(calls, results, strict=True))


def test_a_repository_is_downloaded_and_opens(online, sd35_checkpoint):
    kind, path = online["tiny"]
    assert kind == "path"
    opened, original = open_folder(Path(path)), open_checkpoint(sd35_checkpoint)
    assert opened.digest() == original.digest()
    assert resolve(path) == Path(path)
    assert online["commit"] == online["tiny"]


def test_only_what_an_export_reads_is_downloaded(online, hub, sd35_checkpoint):
    expected = {str(file.relative_to(sd35_checkpoint)) for file in all_files(sd35_checkpoint)}
    assert hub.fetched("eri/tiny") == expected
    half = (expected - {f"vae/{WEIGHTS}"}) | {"vae/diffusion_pytorch_model.fp16.safetensors"}
    assert hub.fetched("eri/half") == half


def test_one_file_of_a_repository(online, hub):
    kind, path = online["file"]
    assert (kind, Path(path).name) == ("path", "sd3_medium.safetensors")
    assert Path(path).read_bytes() == b"not wanted"
    assert hub.fetched("eri/file") == {"sd3_medium.safetensors"}


def test_a_vae_and_an_encoder_may_be_files_of_the_hub(sd35_checkpoint, monkeypatch):
    held = {"eri/vae:a.safetensors": "vae", "eri/t5:t5.safetensors": "text_encoder_3"}

    def local(text, **_):
        return sd35_checkpoint / held[text] if text in held else resolve(text)

    monkeypatch.setattr(sources, "resolve", local)
    vae, t5 = held
    opened = open_checkpoint(sd35_checkpoint, vae=vae, text_encoders=[t5])
    for name in held.values():
        assert opened.components[name].origin == sd35_checkpoint / name


def test_the_token_is_sent(online, hub):
    assert online["licensed"][0] == "path"
    sent = {token for _, path, token in hub.seen if "/eri/" in path}
    assert sent == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("missing", HubError, ("eri/nothing", "no such path", "repository", "OWNER/NAME:FILE")),
        ("gated", HubError, ("eri/gated", "gated", "accept its licence", "HF_TOKEN")),
        ("revision", HubError, ("eri/tiny at 'v9'", "no such revision")),
        ("no-file", HubError, ("no other.safetensors", "sd3_medium.safetensors")),
        ("invalid", HubError, ("eri/two..dots", "no such path")),
        ("bf8", CheckpointError, ("'bf8'", "bf16, fp16")),
    ],
)
def test_what_the_hub_refuses(online, name, error, words):
    kind, text = online[name]
    assert getattr(errors, kind) is error
    for word in words:
        assert word in text


def test_offline(online, home, tmp_path):
    calls = [("eri/tiny", {}), ("eri/file:sd3_medium.safetensors", {}), ("eri/nothing", {})]
    calls.append(("eri/file", {}))  # one file of it was downloaded, never all
    tiny, file, nothing, whole = resolved(calls, home, HF_HUB_OFFLINE="1")
    assert tiny == online["tiny"]
    assert file == online["file"]
    for kind, text in (nothing, whole):
        assert kind == "HubError"
        assert "HF_HUB_OFFLINE" in text
        assert "no copy in" in text


def test_a_network_out_of_reach(online, home, monkeypatch, caplog):
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        assert str(resolve("eri/tiny")) == online["tiny"][1]
        assert "eri/tiny: the Hub is out of reach" in caplog.text
        with pytest.raises(HubError, match=rf"no such path, and no answer from {endpoint}"):
            resolve("eri/nothing")


def test_a_full_disk(monkeypatch, sd35_checkpoint):
    class Api:
        def model_info(self, *_, **__):
            names = [str(file.relative_to(sd35_checkpoint)) for file in all_files(sd35_checkpoint)]
            siblings = [{"rfilename": name} for name in names]
            return huggingface_hub.ModelInfo(id="o/n", siblings=siblings)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(HubError, match=r"o/n: got a full disk at .*HF_HOME"):
        resolve("o/n")


def test_a_pipeline_is_asked_for_by_file_where_there_is_none():
    with pytest.raises(HubError, match=r"its weights are a\.safetensors.*o/n:a\.safetensors"):
        needed_files(Repository("o/n", None, None), ["README.md", "a.safetensors"], None)


def test_a_repository_of_pickles():
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
    with pytest.raises(PickleError, match=r"o/n/unet/diffusion_pytorch_model\.bin"):
        needed_files(Repository("o/n", None, None), names, None)
    with pytest.raises(PickleError, match=r"o/n:model\.ckpt"):
        resolve("o/n:model.ckpt")


# paths


def test_a_path_is_returned_as_it_is(sd35_checkpoint, tmp_path, monkeypatch):
    assert resolve(sd35_checkpoint) == sd35_checkpoint
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")  # a path goes before an id
    with pytest.raises(UsageError, match="revision"):
        resolve("owner/name", revision="main")


@pytest.mark.parametrize(
    "text", ["nowhere", "/no/such/path", "../a/b", "a/b/c", "a b/c", "x" * 9999]
)
def test_neither_a_path_nor_an_id(text):
    with pytest.raises(NotACheckpointError, match=r"no such path.*OWNER/NAME"):
        resolve(text)


@pytest.fixture
def cache(sd35_checkpoint, tmp_path):
    """A folder of the Hub's cache with two snapshots, the second on branch `main`."""
    folder = tmp_path / "models--eri--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    for file in all_files(sd35_checkpoint):
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        inside = file.relative_to(sd35_checkpoint)
        link = folder / "snapshots" / ("b" * 40) / inside
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(inside.parts) + 1), "blobs", blob.name))
    return folder


def test_a_cache_folder_gives_its_snapshot(cache, sd35_checkpoint):
    snapshots = cache / "snapshots"
    assert resolve(cache) == snapshots / ("b" * 40)
    assert open_folder(resolve(cache)).digest() == open_folder(sd35_checkpoint).digest()
    assert resolve(cache, revision="a" * 40) == snapshots / ("a" * 40)
    with pytest.raises(NotACheckpointError, match="expected one of v9"):
        resolve(cache, revision="v9")


def test_a_damaged_ref_of_a_cache_folder(cache):
    (cache / "refs" / "main").write_bytes(b"\xff")
    with pytest.raises(NotACheckpointError, match="expected one of main"):
        resolve(cache)


def test_a_cache_folder_without_main(cache):
    (cache / "refs" / "main").unlink()
    with pytest.raises(NotACheckpointError, match=r"expected one of main.*name a commit"):
        resolve(cache)
    (cache / "snapshots" / ("a" * 40)).rmdir()
    assert resolve(cache) == cache / "snapshots" / ("b" * 40)
