"""Real exports, killed with SIGKILL, on a disk that is really full, two at once."""

from __future__ import annotations

import pytest

from tests.support.faults import run
from tests.support.zygote import no_mounts

KILLS = 36


@pytest.fixture(scope="module")
def results(flux_checkpoint, flux_bundle, tmp_path_factory):
    """All trials that need no file system of their own; one process imports torch for them."""
    plan = {"kills": {"count": KILLS, "seed": 0}, "meetings": {"rounds": 4}}
    plan["stops"] = {"count": 6, "seed": 0}
    work = tmp_path_factory.mktemp("faults")
    return run(plan, checkpoint=flux_checkpoint, graphs=flux_bundle, work=work)


def test_a_killed_export_leaves_the_old_bundle_or_the_new_one(results):
    kills = results["kills"]
    assert sum(kills["phases"].values()) == sum(kills["outcomes"].values()) == KILLS
    assert {"bundle -> the same", "bundle -> bundle", "none -> the same"} <= set(kills["outcomes"])


def test_exports_were_killed_in_every_kind_of_work(results):
    phases = results["kills"]["phases"]
    assert {"comparing", "removing the old"} <= set(phases)
    assert len(set(phases) - {"starting", "ending"}) >= 5


def test_a_terminated_export_leaves_nothing_but_a_whole_bundle(results):
    endings = results["stops"]["endings"]
    assert sum(endings.values()) == 6
    assert endings["unwound, the same"] >= 2


def test_two_exports_to_one_name_leave_one_whole_bundle(results):
    endings = results["meetings"]["endings"]
    assert sum(endings.values()) == 4
    assert {ending.partition(":")[0] for ending in endings} == {"over none", "over a bundle"}


def test_the_same_holds_where_names_cannot_be_exchanged(flux_checkpoint, flux_bundle, tmp_path):
    quirks = ["no exchange"]
    plan = {"kills": {"count": 8, "seed": 1, "quirks": quirks}}
    plan["meetings"] = {"rounds": 2, "quirks": quirks}
    results = run(plan, checkpoint=flux_checkpoint, graphs=flux_bundle, work=tmp_path)
    assert sum(results["kills"]["phases"].values()) == 8
    assert sum(results["meetings"]["endings"].values()) == 2


def test_a_full_file_system_is_a_disk_error_and_leaves_nothing(
    flux_checkpoint, flux_bundle, tmp_path
):
    if reason := no_mounts(tmp_path):
        pytest.skip(f"no file system can be mounted here: {reason}")
    plan = {"full_disks": {"shares": [0, 0.3, 0.7, 1, 2], "inodes": [1, 2, 6, 12]}}
    result = run(
        plan, namespace=True, checkpoint=flux_checkpoint, graphs=flux_bundle, work=tmp_path
    )["full_disks"]
    assert set(result["outcomes"]) == {"refused before", "ran out", "published"}
    assert len(result["struck_after"]) >= 5
