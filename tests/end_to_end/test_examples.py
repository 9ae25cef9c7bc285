"""Every example of the documentation runs as it is, on the demo's bundle, and does what it says."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eri_runtime.serve.http import make_app
from tests.docs.pages import ROOT
from tests.support.fake_engine import FakeEngine
from tests.support.http_server import listening

EXAMPLES = ROOT / "docs" / "examples"
OUT = Path("out/examples")


@pytest.fixture
def clone(demo_bundle, tmp_path, monkeypatch):
    """A folder like a clone after `make demo`, which is the working folder."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo").symlink_to(demo_bundle)
    for name in ("docs", "eri_export"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name, *arguments):
    """Runs an example as `python docs/examples/NAME` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(f"docs/examples/{name}", run_name="__main__")


def pixels(name):
    """(H, W, 3) of a picture that an example wrote."""
    with Image.open(OUT / name) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def apart(one, other):
    """The mean difference of two pictures, of 255."""
    return np.abs(one - other).mean()


def test_text_to_image(clone, capsys):
    run("text_to_image.py")
    one, two, three = (pixels(f"heart-{seed}.png") for seed in range(3))
    assert apart(one, two) > 0
    assert apart(two, three) > 0
    assert np.array_equal(pixels("hearts.png"), np.concatenate([one, two, three], axis=1))
    assert capsys.readouterr().out.count("Seed: ") == 3


def test_lora(clone):
    run("lora.py")
    off, half, on = (pixels(f"lora-{name}.png") for name in ("off", "half", "on"))
    assert apart(on, off) > apart(half, off) > 1
    assert np.array_equal(pixels("lora-off-again.png"), off)


def test_image_to_image(clone):
    run("image_to_image.py")
    pictures = [pixels(f"sketch-{strength}.png") for strength in (0.3, 0.6, 0.9)]
    assert len({each.tobytes() for each in pictures}) == 3


def test_mask(clone):
    run("mask.py")
    before, after = pixels("mask-before.png"), pixels("mask-after.png")
    middle = before.shape[1] // 2
    assert np.array_equal(after[:, : middle - 16], before[:, : middle - 16])
    assert apart(after[:, middle:], before[:, middle:]) > 1


def test_batch(clone):
    run("batch.py")
    lines = (EXAMPLES / "prompts.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = sorted(each.name for each in (OUT / "batch").iterdir())
    assert len(names) == len(lines)
    assert names[:2] == ["000-seed7.png", "001-seed3.png"]


def test_training_validation(clone, capsys):
    run("training_validation.py")
    first, *_, last = sorted((OUT / "training").iterdir())
    assert "step00000000" in first.name
    assert "step00000020" in last.name
    assert apart(*(pixels(each.relative_to(OUT)) for each in (first, last))) > 5
    assert capsys.readouterr().out.count("step ") == 3


def test_own_loop(clone, capsys):
    run("own_loop.py")
    assert "the same bits: True" in capsys.readouterr().out
    assert (OUT / "loop-05.png").is_file()
    assert apart(pixels("loop-10.png"), pixels("loop-resumed.png")) > 1


def test_server_client(clone, capsys):
    """Against a real socket; the engine behind it draws at once."""
    with listening(make_app(FakeEngine(("demo",)))) as address:
        run("server_client.py", address)
    assert "models: demo" in capsys.readouterr().out
    assert pixels("served-0.png").shape == pixels("served-1.png").shape


def test_notebook(clone, monkeypatch):
    """Its cells in order, in its own folder, as Jupyter runs them."""
    folder = clone / "copy" / "examples"  # `docs` is a link, and `..` leads out of it
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    book = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for number, cell in enumerate(each for each in book["cells"] if each["cell_type"] == "code"):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102 ours
    assert names["row"].size == (3 * names["width"], names["height"])
    assert len(names["previews"]) == 4


def test_every_example_is_tested_and_listed():
    files = {each.name for each in EXAMPLES.iterdir() if each.suffix in (".py", ".ipynb", ".csv")}
    listed = (EXAMPLES / "index.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name})" in listed for name in files)
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {Path(name).stem for name in files} - {"prompts"} <= tested
