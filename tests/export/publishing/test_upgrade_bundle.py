"""`eri upgrade`: an older bundle gets the step graph of an export of now, and loses nothing."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import eri_runtime as eri
from eri_export.commands.upgrade import upgrade_command
from eri_export.gate.upgraded_step import FORMULA, OLDER, compare_step_graphs
from eri_export.graphs.step_graph import compose
from eri_export.publishing import upgrade_bundle
from eri_export.publishing.atomic_publish import records, write_manifest
from eri_export.publishing.upgrade_bundle import upgrade
from eri_runtime.bundle import file_record, manifest, verify_all
from eri_runtime.bundle.spec import PlanSpec
from eri_runtime.errors import (
    BackendError,
    DiskError,
    ExportError,
    IntegrityError,
    ManifestError,
    NotABundleError,
    ParityError,
)
from tests.support.components import STATIC, only
from tests.support.plans import exported
from tests.support.shared_row import old_bundle

FAMILIES = ["sdxl", "sd35", "flux"]
STEPS = ("denoiser/step.onnx", "denoiser/step.cuda.onnx")


@pytest.fixture(scope="module")
def older(sd35_bundle, tmp_path_factory):
    """A bundle of before; not to be changed."""
    return old_bundle(sd35_bundle, tmp_path_factory.mktemp("older") / "bundle").root


@pytest.fixture
def root(older, tmp_path):
    """A copy of it."""
    return shutil.copytree(older, tmp_path / "bundle")


def contents(root):
    """Every file of a folder and its bytes, but for what engines have compiled."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "compiled"
    }


def alone(root):
    """Whether nothing lies beside a bundle that was not there."""
    return [path.name for path in root.parent.iterdir()] == [root.name]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_upgraded_bundle_is_one_exported_now(request, family, tmp_path):
    new = request.getfixturevalue(f"{family}_bundle")
    root = old_bundle(new, tmp_path / "bundle").root
    stages = []
    result = upgrade(root, progress=lambda event: stages.append((event.component, event.stage)))
    assert contents(root) == contents(new)
    assert result.bundle == replace(manifest.read(new), root=root)
    assert 0 <= result.error <= 1e-5
    assert result.parts
    assert result.dropped == ()
    assert alone(root)
    assert list(dict.fromkeys(stages)) == [
        ("denoiser", "write"),
        ("denoiser", "compare"),
        ("bundle", "publish"),
    ]
    verify_all(manifest.read(root))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits(sd35_checkpoint, precision, tmp_path):
    with only({"denoiser"}):
        new = exported(sd35_checkpoint, tmp_path / "new", precision, STATIC)
    (tmp_path / "there").mkdir()
    root = old_bundle(new, tmp_path / "there" / "bundle").root
    result = upgrade(root)
    assert contents(root) == contents(new)
    assert result.parts
    assert 0 <= result.error <= 3e-2
    assert alone(root)


def test_weights_are_the_same_file_and_not_a_copy(root):
    before = (root / "denoiser" / "weights.safetensors").stat().st_ino
    upgrade(root)
    assert (root / "denoiser" / "weights.safetensors").stat().st_ino == before


def test_a_bundle_of_now_is_left_alone(sd35_bundle, tmp_path):
    root = shutil.copytree(sd35_bundle, tmp_path / "bundle")
    before = contents(root), root.stat().st_ino
    result = upgrade(root)
    assert result.error is None
    assert (contents(root), root.stat().st_ino) == before
    assert result.bundle == manifest.read(root)


def test_a_bundle_that_lacks_only_the_parts_gets_them_and_keeps_its_plans(sd35_bundle, tmp_path):
    root = shutil.copytree(sd35_bundle, tmp_path / "bundle")
    (root / "plans").mkdir()
    (root / "plans" / "step.plan").write_bytes(b"a plan")

    def without(bundle):
        spec = bundle.components["denoiser"]
        for part in spec.step_cache:
            (root / part.graph).unlink()
        components = {**bundle.components, "denoiser": replace(spec, step_cache=())}
        plans = {"plans/step.plan": plan_of("denoiser/step.onnx")}
        return replace(bundle, components=components, plans=plans, files=records(root, {}))

    rewrite(root, without)
    result = upgrade(root)
    assert (result.error, result.parts, result.dropped) == (None, True, ())
    assert result.bundle.plans.keys() == {"plans/step.plan"}
    (root / "plans" / "step.plan").unlink()
    (root / "plans").rmdir()
    graphs = [path for path in contents(root) if path.startswith("denoiser")]
    assert {name: (root / name).read_bytes() for name in graphs} == {
        name: data for name, data in contents(sd35_bundle).items() if name.startswith("denoiser")
    }


def test_a_second_upgrade_changes_nothing(root):
    upgrade(root)
    before = contents(root)
    assert upgrade(root).error is None
    assert contents(root) == before


def test_a_bundle_without_step_graph_gets_one(older, sd35_bundle, tmp_path):
    root = shutil.copytree(older, tmp_path / "bundle")
    rewrite(root, lambda bundle: without_step(bundle, root))
    assert not any((root / step).exists() for step in STEPS)
    upgrade(root)
    assert contents(root) == contents(sd35_bundle)


def without_step(bundle, root):
    for step in STEPS:
        (root / step).unlink()
    files = {name: file for name, file in bundle.files.items() if name not in STEPS}
    spec = replace(bundle.components["denoiser"], step=None)
    return replace(bundle, files=files, components={**bundle.components, "denoiser": spec})


def test_without_cuda_form_none_is_made(root):
    forms = [*root.glob("*/*.cuda.onnx")]
    for form in forms:
        form.unlink()
    rewrite(root, lambda bundle: replace(bundle, files=records(root, {})))
    upgrade(root)
    assert forms
    assert not [*root.glob("*/*.cuda.onnx")]


def test_a_step_graph_for_cuda_without_its_denoiser_is_not_kept(root):
    """It would be the older one beside the new one."""
    (root / "denoiser" / "model.cuda.onnx").unlink()
    rewrite(root, lambda bundle: replace(bundle, files=records(root, {})))
    upgrade(root)
    assert not (root / "denoiser" / "step.cuda.onnx").exists()
    verify_all(manifest.read(root))


def rewrite(root, change):
    """Writes another manifest, with the hashes of what is there."""
    bundle = manifest.read(root)
    (root / "manifest.json").unlink()
    write_manifest(change(bundle))


def plan_of(graph):
    return PlanSpec(
        component="denoiser",
        graph=graph,
        engine="tensorrt-rtx",
        version="1.7.1.116",
        capabilities=("8.9",),
        profiles=({},),
        flags=(),
        level=3,
        workspace=None,
        attention=0,
        fused=0,
    )


def test_plans_of_the_older_step_graph_are_dropped_and_others_stay(root):
    (root / "plans").mkdir()
    graphs = {"plans/bare.plan": "denoiser/model.onnx", "plans/step.plan": "denoiser/step.onnx"}
    for file in graphs:
        (root / file).write_bytes(b"a plan")
        (root / file).with_suffix(".json").write_text("{}")
    plans = {file: plan_of(graph) for file, graph in graphs.items()}
    rewrite(root, lambda bundle: replace(bundle, plans=plans, files=records(root, {})))
    result = upgrade(root)
    assert result.dropped == ("plans/step.plan",)
    assert result.bundle.plans.keys() == {"plans/bare.plan"}
    assert sorted(path.name for path in (root / "plans").iterdir()) == ["bare.json", "bare.plan"]
    verify_all(manifest.read(root))


def test_an_open_pipeline_goes_on_and_a_new_one_makes_the_same(root):
    words = {"num_inference_steps": 2, "output_type": "latent", "seed": 1}
    with eri.load(root, "cpu", loop="step") as pipe:
        before = pipe("a red heart", **words, height=32, width=32).latents
        upgrade(root)
        during = pipe("a red heart", **words, height=32, width=32).latents
    with eri.load(root, "cpu", loop="step") as pipe:
        after = pipe("a red heart", **words, height=32, width=32).latents
    np.testing.assert_array_equal(before, during)
    np.testing.assert_array_equal(before, after)


# what cannot be upgraded


def damaged(root, name, data):
    """Replaces a file and its hash: the manifest says that it is right."""
    path = root / name
    path.unlink()  # other bundles may link to it
    path.write_bytes(data)
    record = file_record(path)
    rewrite(root, lambda bundle: replace(bundle, files={**bundle.files, name: record}))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 99, b"no graph", b"\x08\x0a\x3a\xff\xff\xff\xff\x07"],
    ids=["nothing", "zeros", "words", "a length beyond the end"],
)
@pytest.mark.parametrize("name", ["model.onnx", "model.cuda.onnx", "step.onnx"])
def test_what_is_no_graph_is_refused(root, name, data):
    damaged(root, f"denoiser/{name}", data)
    before = contents(root)
    with pytest.raises((ExportError, BackendError)) as caught:
        upgrade(root)
    assert name in str(caught.value)
    assert contents(root) == before
    assert alone(root)


def test_a_graph_of_something_else_is_refused(root):
    damaged(root, "denoiser/model.onnx", (root / "vae_decoder" / "model.onnx").read_bytes())
    with pytest.raises(ExportError, match="got the inputs latents and 1 outputs"):
        upgrade(root)
    assert alone(root)


def test_a_step_graph_as_the_denoiser_is_refused(root):
    damaged(root, "denoiser/model.onnx", (root / "denoiser" / "step.onnx").read_bytes())
    with pytest.raises(ExportError, match=r"got the inputs x, history, .* and 4 outputs"):
        upgrade(root)


def test_an_older_step_graph_of_other_numbers_is_a_parity_error(root):
    model = ir.load(root / "denoiser" / "step.onnx")
    first, _, third, _ = model.graph.outputs
    first.name, third.name = third.name, first.name
    changed = root.parent / "changed.onnx"
    ir.save(model, changed)
    data = changed.read_bytes()
    changed.unlink()
    damaged(root, "denoiser/step.onnx", data)
    before = contents(root)
    with pytest.raises(ParityError, match=r"older step graph.*nothing was published"):
        upgrade(root)
    assert contents(root) == before
    assert alone(root)


def test_a_composition_that_is_wrong_is_a_parity_error(root, monkeypatch):
    def wrong(model):
        compose(model)
        first, _, third, _ = model.graph.outputs
        first.name, third.name = third.name, first.name

    monkeypatch.setattr(upgrade_bundle, "compose", wrong)
    before = contents(root)
    with pytest.raises(ParityError, match=r"denoiser\.x_next"):
        upgrade(root)
    assert contents(root) == before


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "step.onnx"])
def test_a_damaged_file_is_refused(root, name):
    path = root / "denoiser" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        upgrade(root)
    assert alone(root)


def test_a_missing_file_is_refused(root):
    (root / "vae_decoder" / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match="got no file"):
        upgrade(root)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(NotABundleError):
        upgrade(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(ManifestError):
        upgrade(tmp_path)


def test_an_interrupt_leaves_the_bundle(root, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("_compose", "compare_step_graphs", "_changed", "write_manifest"):
        before = contents(root)
        with monkeypatch.context() as patch:
            patch.setattr(upgrade_bundle, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                upgrade(root)
        assert contents(root) == before
        assert alone(root)


def test_a_full_disk_leaves_the_bundle(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = contents(root)
    monkeypatch.setattr(upgrade_bundle.ir, "save", full)
    with pytest.raises(DiskError, match="a full disk"):
        upgrade(root)
    assert contents(root) == before
    assert alone(root)


def test_a_bundle_that_was_replaced_meanwhile_is_left(root, monkeypatch):
    def replaced(*arguments):
        report = compare_step_graphs(*arguments)
        damaged(root, "denoiser/model.onnx", b"another export")
        return report

    monkeypatch.setattr(upgrade_bundle, "compare_step_graphs", replaced)
    with pytest.raises(ExportError, match="replaced during the upgrade"):
        upgrade(root)
    assert (root / "denoiser" / "model.onnx").read_bytes() == b"another export"
    assert alone(root)


def test_both_comparisons_are_made(root):
    spec = manifest.read(root).components["denoiser"]
    new = root / "denoiser" / "new.onnx"
    model = ir.load(root / spec.graph)
    compose(model)
    ir.save(model, new)
    report = compare_step_graphs(spec, root / spec.graph, new, root / spec.step)
    assert [each.output for each in report.metrics] == [FORMULA, OLDER]
    assert report
    only_one = compare_step_graphs(spec, root / spec.graph, new, None)
    assert [each.output for each in only_one.metrics] == [FORMULA]


# the command


def command(*arguments):
    parser = ArgumentParser()
    upgrade_command(parser.add_subparsers())
    options = parser.parse_args(["upgrade", *map(str, arguments)])
    options.run(options)


def test_the_command_says_what_changed(root, capsys, monkeypatch):
    monkeypatch.chdir(root.parent)
    command(Path(root.name))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "bundle: the step graph takes a row for each image now"
    assert second.startswith("relative error ")
    assert third == "bundle: its steps can be cached now, with --step-cache"
    command(Path(root.name))
    assert "nothing changed" in capsys.readouterr().out
    assert json.loads((root / "manifest.json").read_text())["components"]["denoiser"][
        "step_per_image"
    ]


def test_the_command_names_the_dropped_plans(root, capsys):
    (root / "plans").mkdir()
    (root / "plans" / "step.plan").write_bytes(b"a plan")
    plans = {"plans/step.plan": plan_of("denoiser/step.onnx")}
    rewrite(root, lambda bundle: replace(bundle, plans=plans, files=records(root, {})))
    command(root)
    assert "dropped plans/step.plan" in capsys.readouterr().out
