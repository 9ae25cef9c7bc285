"""Every snippet of the README and the documentation runs, page by page, on tiny bundles."""

from __future__ import annotations

import gzip
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webuiapi
from PIL import Image
from safetensors.numpy import load_file, save_file

import eri_runtime as eri
from eri_export import export
from eri_runtime.commands.main import main, make_parser
from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import ServerOptions, make_app
from tests.docs.pages import PAGES, ROOT, commands, fences, name, run_python
from tests.support import single_files as made
from tests.support.fake_engine import FakeEngine
from tests.support.http_server import listening
from tests.support.published_models import PUBLISHED

PYTHON = [page for page in PAGES if fences(page, "python")]
SHELL = [page for page in PAGES if commands(page)]
# commands that are run here; the others, whose files are not at hand or which take long, are parsed
CHEAP = {"generate", "inspect", "export-triton"}
FULL_SIZE = (
    "sd_xl_base_1.0.safetensors",
    "sd_xl_turbo_1.0_fp16.safetensors",
    "sdxl_lightning_4step.safetensors",
)


# what the pages name, and the fixture that it is
LINKS = {
    "engines/demo": "sd35_bundle",
    "engines/demo-flux": "flux_bundle",
    "engines/many-loras": "lora_inputs_bundle",
    "checkpoint": "sd35_checkpoint",
}


def no_link(*_: object) -> None:
    """Fails: other tests show the shared bundles to onnx's checker, which refuses hard links."""
    raise OSError("no hard links here")


@pytest.fixture
def folder(page, tmp_path, monkeypatch, request):
    """A working directory with the bundles and files that a page names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(Path, "hardlink_to", no_link)
    Path("engines").mkdir()
    text = page.read_text(encoding="utf-8")
    for link, fixture in LINKS.items():
        if re.search(rf"(?<![\w/]){link}(?![\w-])", text):
            Path(link).symlink_to(request.getfixturevalue(fixture))
    if Path("engines/demo").exists():
        for each in ("style", "other", "a"):
            save_file(tiny_lora(Path("engines/demo")), f"{each}.safetensors")
        save_file({"emb_params": np.ones((2, 32), np.float32)}, "cat.safetensors")
    Path("prompts.csv").write_text("prompt,seed\na red heart,7\na pizza,\n", encoding="utf-8")
    Image.new("RGB", (64, 64), "red").save("heart.png")
    Image.new("L", (64, 64), "white").save("mask.png")
    return tmp_path


@pytest.fixture(scope="session")
def lora_inputs_bundle(sd35_checkpoint, tmp_path_factory):
    """A tiny bundle whose denoiser takes LoRAs as inputs."""
    target = tmp_path_factory.mktemp("lora-inputs") / "bundle"
    export(sd35_checkpoint, target, lora_rank=8)
    return target


def tiny_lora(bundle: Path) -> dict[str, np.ndarray]:
    """A LoRA of rank 2 for one linear layer of the denoiser, in peft's names."""
    weights = load_file(bundle / "denoiser" / "weights.safetensors")
    key = next(key for key in sorted(weights) if key.endswith("attn.to_q.weight"))
    rows, columns = weights[key].shape
    layer = "transformer." + key.removesuffix(".weight")
    return {
        f"{layer}.lora_A.weight": np.full((2, columns), 0.01, np.float32),
        f"{layer}.lora_B.weight": np.full((rows, 2), 0.01, np.float32),
    }


class Logger:
    """A logger that remembers what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Path, int]] = []

    def log_image(self, path: Path, step: int) -> None:
        self.shown.append((path, step))


class Weights:
    """Stands for a torch module in training: a state dict of some of the denoiser's weights."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        weights = load_file("engines/demo/denoiser/weights.safetensors")
        return {key: torch.from_numpy(weights[key]) for key in sorted(weights)[:2]}


def prelude(page: str) -> dict[str, object]:
    """What a page takes for granted: the objects of the reader's own training."""
    if page == "docs/guides/training.md":
        return {"model": Weights(), "ema": Weights(), "done": 100, "writer": Logger()}
    if page == "docs/guides/lora.md":
        return {"ema": Weights()}
    return {}


@pytest.fixture
def server(page, monkeypatch):
    """A server that the page's clients find, around an engine that draws at once."""
    if name(page) != "docs/guides/serving.md":
        yield
        return
    options = EngineOptions(loras={"fox": Path("fox.safetensors")})
    app = make_app(FakeEngine(("demo",), options), ServerOptions(api_keys=["secret"]))
    with listening(app) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        a1111 = partial(webuiapi.WebUIApi, baseurl=f"{address}/sdapi/v1")
        keyed = partial(a1111, username="anyone", password="secret")  # noqa: S106 the server above
        monkeypatch.setattr(webuiapi, "WebUIApi", keyed)
        yield


@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_the_python_of_a_page_runs(page, folder, server):
    names = prelude(name(page))
    try:
        run_python(page, names)
    finally:
        for value in names.values():
            if isinstance(value, eri.Pipeline):
                value.close()


@pytest.mark.parametrize("page", SHELL, ids=name)
def test_the_commands_of_a_page_exist(page):
    for arguments in commands(page):
        assert make_parser().parse_args(arguments).run


def rehearsed(arguments: list[str]) -> list[str] | None:
    """A command as it is run here: an export of a published model is planned; None: not at all."""
    command, first = arguments[0], arguments[1]
    if command in CHEAP:  # with sizes that tiny bundles serve
        return arguments if first.startswith("engines/demo") else None
    if command == "bench":  # what needs no measurement
        return arguments if first in ("--render", "--compare") else None
    if command == "export" and first in FULL_SIZE and "--lora" not in arguments:
        return arguments if "--dry-run" in arguments else [*arguments, "--dry-run"]
    return None


@pytest.fixture
def published(page, folder):
    """Files of full size without contents, and results, where a page names them."""
    text = page.read_text(encoding="utf-8")
    for file in filter(text.__contains__, FULL_SIZE):
        made.sparse(Path(file), PUBLISHED["sdxl-base"][0]("sdxl-base"))
    for file in filter(text.__contains__, ("r.json", "before.json", "after.json")):
        packed = (ROOT / "benchmarks/results/bench-demo.json.gz").read_bytes()
        Path(file).write_bytes(gzip.decompress(packed))


@pytest.mark.parametrize("page", [p for p in SHELL if any(map(rehearsed, commands(p)))], ids=name)
def test_the_cheap_commands_of_a_page_run(page, folder, published, capsys):
    for arguments in filter(None, map(rehearsed, commands(page))):
        assert main(arguments) == 0, (arguments, capsys.readouterr().err)


def test_most_commands_are_run():
    """Others need a GPU, a network or minutes; `test_newcomer` runs those of the first pages."""
    ran = [each for page in SHELL for each in commands(page) if rehearsed(each)]
    assert {each[0] for each in ran} >= {"generate", "inspect", "bench", "export"}
    assert len(ran) >= 0.55 * sum(len(commands(page)) for page in SHELL)


def test_every_page_that_shows_python_is_collected():
    assert {"README.md", "docs/index.md"} <= set(map(name, PYTHON))
    for page in PAGES:  # no other spelling of a Python block
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"^ *(```|~~~) ?(py|Python|python3|pycon)\b(?!thon)", text, re.MULTILINE
        )


def test_the_guide_lists_every_sampler():
    guide = (PAGES[0].parent / "docs/guides/samplers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.*?) ?\|$", guide, flags=re.MULTILINE)
    listed = {row[0]: row[1:] for row in rows}
    assert set(listed) == set(eri.SAMPLERS)
    for key, sampler in eri.SAMPLERS.items():
        options = ", ".join(f"`{option}`" for option in sampler.options)
        assert listed[key] == (sampler.label, ", ".join(sampler.kinds), options)
