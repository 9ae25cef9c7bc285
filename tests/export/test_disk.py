"""What a disk does is said with the name of the folder, what is free, and the way out."""

from __future__ import annotations

import errno
import resource

import pytest
from tokenizers import Tokenizer, models

from eri_export import disk, export
from eri_export.disk import disk_faults, require_space
from eri_export.publishing import export_bundle
from eri_export.publishing.atomic_publish import staging
from eri_runtime.errors import DamagedWeightsError, DiskError


def failing(folder, error, cause=None):
    with disk_faults(folder):
        raise error from cause


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_what_a_disk_does_is_a_disk_error(tmp_path, code):
    with pytest.raises(DiskError, match=r"MB free.*nothing was published") as caught:
        failing(tmp_path / "to come", OSError(code, "the system's word"))
    assert caught.value.offender == str(tmp_path / "to come")


def test_rusts_way_to_say_it_is_understood(tmp_path):
    with pytest.raises(DiskError, match="a full disk"):
        failing(tmp_path, Exception("No space left on device (os error 28)"))


def test_what_led_to_an_exception_counts(tmp_path):
    with pytest.raises(DiskError, match="a full disk"):
        failing(tmp_path, RuntimeError("could not save"), OSError(errno.ENOSPC, "full"))


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), RuntimeError("os error 28"), KeyboardInterrupt()]
)
def test_everything_else_passes(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        failing(tmp_path, error)
    assert caught.value is error


def test_a_checkpoint_on_a_failing_disk_is_still_the_checkpoints_error(tmp_path):
    error = DamagedWeightsError("model.safetensors", got="EIO", expected="a file")
    with pytest.raises(DamagedWeightsError):
        failing(tmp_path, error, OSError(errno.EIO, "read"))


def test_space_is_asked_for(tmp_path, monkeypatch):
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    require_space(tmp_path, 10**6)
    with pytest.raises(DiskError, match=r"1\.0 MB free, expected 3\.0 MB.*another output folder"):
        require_space(tmp_path, 3 * 10**6)


def test_an_export_without_room_ends_before_anything_is_traced(
    sd35_checkpoint, tmp_path, monkeypatch
):
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=10**5))
    monkeypatch.setattr(export_bundle, "trace", lambda _: pytest.fail("traced"))
    with pytest.raises(DiskError, match="for the weights alone"):
        export(sd35_checkpoint, tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def write_bytes(file):
    file.write_bytes(bytes(10**5))


def write_tokenizer(file):
    vocabulary = {f"token {number}": number for number in range(10**4)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="token 0")).save(str(file))  # noqa: S106


def write_into(target, write):
    with staging(target) as folder:
        write(folder / "file")


@pytest.mark.parametrize("write", [write_bytes, write_tokenizer])
def test_a_real_limit_on_the_size_of_files_is_a_disk_error(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, hard))
    try:
        with pytest.raises(DiskError, match="larger than"):
            write_into(tmp_path / "demo", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
