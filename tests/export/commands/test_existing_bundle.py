"""When an export may be left out because the bundle is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from eri_export.choices import USUAL, make_ranges
from eri_export.commands import demo as demo_command
from eri_export.commands.existing_bundle import is_up_to_date
from eri_runtime.bundle import MANIFEST
from eri_runtime.commands.main import main
from tests.docs.pages import ROOT


@pytest.fixture
def bundle(sd35_bundle, tmp_path):
    """A copy of the bundle, newer than its checkpoint."""
    return Path(shutil.copytree(sd35_bundle, tmp_path / "bundle"))


def test_a_whole_bundle_of_this_checkpoint_is_up_to_date(bundle, sd35_checkpoint):
    assert is_up_to_date(bundle, sd35_checkpoint, USUAL)


def test_another_checkpoint_or_another_range_of_sizes_is_not(
    bundle, sd35_checkpoint, sdxl_checkpoint
):
    assert not is_up_to_date(bundle, sdxl_checkpoint, USUAL)
    assert not is_up_to_date(bundle, sd35_checkpoint, make_ranges(batch="1:1:2"))


def test_a_checkpoint_that_changed_after_the_export_is_not(bundle, sd35_checkpoint, tmp_path):
    """Its digest does not cover the values of its weights, so its files' times decide."""
    newer = Path(shutil.copytree(sd35_checkpoint, tmp_path / "newer"))
    assert is_up_to_date(bundle, newer, USUAL)
    (weights, *_) = newer.glob("transformer/*.safetensors")
    later = (bundle / MANIFEST).stat().st_mtime + 1
    os.utime(weights, (later, later))
    assert not is_up_to_date(bundle, newer, USUAL)


@pytest.mark.parametrize("fault", ["damaged", "short", "removed", "no manifest", "nothing"])
def test_a_bundle_that_is_not_whole_is_not(bundle, sd35_checkpoint, fault):
    weights = bundle / "denoiser" / "weights.safetensors"
    if fault == "damaged":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif fault == "short":
        os.truncate(weights, 1000)
    elif fault == "removed":
        weights.unlink()
    elif fault == "no manifest":
        (bundle / MANIFEST).unlink()
    else:
        shutil.rmtree(bundle)
    assert not is_up_to_date(bundle, sd35_checkpoint, USUAL)


@pytest.mark.parametrize(
    ("options", "there", "exports"),
    [([], True, False), ([], False, True), (["--force"], True, True)],
)
def test_the_demo_exports_if_need_be_or_if_told_to(monkeypatch, options, there, exports, capsys):
    """Without the export itself, which `test_newcomer` runs."""
    exported = []
    monkeypatch.setattr(demo_command, "is_up_to_date", lambda *_: there)
    monkeypatch.setattr(demo_command, "run_export", lambda output, **_: exported.append(output))
    monkeypatch.setattr(demo_command, "draw_sheet", lambda *_: Path("out/demo.png"))
    assert main(["demo", *options]) == 0
    assert exported == ([Path("engines/demo")] if exports else [])
    assert ("already exported" in capsys.readouterr().out) is not exports


def test_make_demo_installs_what_a_demo_needs_and_no_more():
    """And `make test` then adds the rest to the same environment."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ndemo: $(DEMO)\n" in text
    recipe = text.partition("\n$(DEMO): ")[2].partition("\n\n")[0]
    assert "--editable '.[export]'" in recipe
    assert "\nlint: $(INSTALLED)\n" in text
    installed = requirements("eri-diffusion", "export")
    assert {"torch", "diffusers", "onnxruntime"} <= installed
    assert installed.isdisjoint({"mypy", "wandb", "pytest", "ruff", "openvino", "mkdocs"})


def requirements(package: str, *extras: str) -> set[str]:
    """Every package that pip installs with one, by the metadata of what is installed here."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    found, waiting = set[str](), [(package, extras)]
    while waiting:
        name, wanted = waiting.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for each in map(Requirement, lines):
            applies = each.marker is None or any(
                each.marker.evaluate({"extra": extra}) for extra in (*wanted, "")
            )
            if applies and each.name not in found:
                found.add(each.name)
                waiting.append((each.name, tuple(each.extras)))
    return found
