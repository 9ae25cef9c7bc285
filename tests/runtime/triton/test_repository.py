"""`eri export-triton`: what the repository holds, and that it appears complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import onnxruntime
import pytest

from eri_runtime.bundle import manifest, verify_all
from eri_runtime.commands.main import main
from eri_runtime.errors import DiskError, IntegrityError, UsageError
from eri_runtime.triton import PIPELINE, export_repository, repository
from tests.support.triton_schema import parse

NUMPY = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def exported(sd35_bundle, tmp_path_factory):
    """A repository of the tiny SD3.5 bundle."""
    return export_repository(sd35_bundle, tmp_path_factory.mktemp("triton") / "repository")


def configs(folder):
    """The configurations of all models, by their folders."""
    return {each.name: parse((each / "config.pbtxt").read_text()) for each in folder.iterdir()}


def data_type(tensor) -> str:
    """The name of a tensor's data type."""
    types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return types.values_by_number[tensor.data_type].name


def test_every_model_has_a_configuration_of_its_name(exported, sd35_bundle):
    found = configs(exported)
    assert found.keys() == {PIPELINE, *manifest.read(sd35_bundle).components}
    for name, config in found.items():
        assert config.name == name
        assert config.max_batch_size == 0
        assert (exported / name / "1" / config.default_model_filename).is_file()


@pytest.mark.parametrize("family", ["sd35", "sdxl", "flux"])
def test_configurations_describe_the_graphs(family, request, tmp_path):
    """ONNX Runtime opens every model in its folder, with the tensors that the configuration has."""
    bundle = request.getfixturevalue(f"{family}_bundle")
    folder = export_repository(bundle, tmp_path / "repository")
    for name, config in configs(folder).items():
        if config.backend == "python":
            continue
        path = folder / name / "1" / config.default_model_filename
        session = onnxruntime.InferenceSession(path)
        for found, expected in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert {each.name: described(each) for each in found} == {
                each.name: (NUMPY[each.type], dims(each.shape)) for each in expected
            }


def described(tensor):
    return data_type(tensor), [*tensor.dims]


def dims(shape):
    return [size if isinstance(size, int) else -1 for size in shape]


def test_a_component_computes_what_it_computes_in_the_bundle(exported, sd35_bundle):
    length = manifest.read(sd35_bundle).tokenizers["tokenizer"].max_length
    ids = np.arange(length)[None]
    outputs = [
        onnxruntime.InferenceSession(path).run(None, {"input_ids": ids})
        for path in (
            exported / "text_encoder/1/model.onnx",
            sd35_bundle / "text_encoder/model.onnx",
        )
    ]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_are_links_to_the_bundle(exported, sd35_bundle):
    weights = exported / "denoiser" / "1" / "weights.safetensors"
    assert weights.samefile(sd35_bundle / "denoiser" / "weights.safetensors")
    assert not any(path.is_symlink() for path in exported.rglob("*"))


def test_without_hard_links_files_are_copies(sd35_bundle, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    folder = export_repository(sd35_bundle, tmp_path / "repository")
    weights = folder / "denoiser" / "1" / "weights.safetensors"
    assert not weights.samefile(sd35_bundle / "denoiser" / "weights.safetensors")
    assert weights.read_bytes() == (sd35_bundle / "denoiser/weights.safetensors").read_bytes()
    verify_all(manifest.read(folder / PIPELINE / "1" / "bundle"))


def test_a_bundle_of_symbolic_links_gives_a_repository_of_files(sd35_bundle, tmp_path):
    """As in the cache of the Hugging Face Hub: a server may not follow links out of its folder."""
    linked = tmp_path / "linked"
    for path in sd35_bundle.rglob("*"):
        if path.is_file():
            target = linked / path.relative_to(sd35_bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    folder = export_repository(linked, tmp_path / "repository")
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_the_command_says_how_to_serve_it(sd35_bundle, tmp_path, capsys):
    target = tmp_path / "new" / "repository"
    assert main(["export-triton", str(sd35_bundle), "-o", str(target)]) == 0
    out = capsys.readouterr().out
    assert out == f"{target}  serve it with `tritonserver --model-repository {target}`\n"
    assert [path.name for path in target.parent.iterdir()] == ["repository"]


def test_an_empty_folder_is_taken_and_another_one_is_left(sd35_bundle, tmp_path):
    target = tmp_path / "repository"
    target.mkdir()
    export_repository(sd35_bundle, target)
    before = sorted(target.rglob("*"))
    with pytest.raises(UsageError, match="got a folder that is not empty"):
        export_repository(sd35_bundle, target)
    assert sorted(target.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--backend", "cuba"], 2, "backend: got 'cuba', expected one of auto, tensorrt"),
        (["--plans"], 1, "got no plan that Triton can run"),
    ],
)
def test_a_bad_value_is_one_line_and_leaves_nothing(
    sd35_bundle, tmp_path, capsys, words, status, message
):
    target = tmp_path / "repository"
    assert main(["export-triton", str(sd35_bundle), "-o", str(target), *words]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(sd35_bundle, tmp_path):
    target = tmp_path / "repository"
    target.write_text("mine")
    with pytest.raises(UsageError, match="Not a directory"):
        export_repository(sd35_bundle, target)
    assert target.read_text() == "mine"


def test_a_damaged_bundle_is_refused(sd35_bundle, tmp_path):
    bundle = shutil.copytree(sd35_bundle, tmp_path / "damaged")
    weights = bundle / "denoiser" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        export_repository(bundle, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_full_disk_leaves_nothing(sd35_bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(repository.shutil, "copyfile", full)
    with pytest.raises(DiskError, match="No space left on device"):
        export_repository(sd35_bundle, tmp_path / "repository")
    assert not any(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed(sd35_bundle, tmp_path):
    """A locked one, of an export that runs, is left."""
    left = tmp_path / ".repository.999999999-0123abcd.partial"
    (left / "denoiser").mkdir(parents=True)
    other = tmp_path / ".another.999999999-0123abcd.partial"
    other.mkdir()
    export_repository(sd35_bundle, tmp_path / "repository")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "repository"]


def test_the_unfinished_folder_of_a_running_export_is_left(sd35_bundle, tmp_path):
    seen = []

    def second(_):
        if not seen:
            seen.extend(tmp_path.iterdir())
            export_repository(sd35_bundle, tmp_path / "repository")

    with pytest.raises(DiskError, match="Directory not empty"):
        export_repository(sd35_bundle, tmp_path / "repository", on_bytes=second)
    assert len(seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    verify_all(manifest.read(tmp_path / "repository" / PIPELINE / "1" / "bundle"))
