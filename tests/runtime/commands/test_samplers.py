"""`eri samplers`: the names, as a table and as JSON."""

from __future__ import annotations

import json

import pytest

from eri_runtime import SAMPLERS
from eri_runtime.commands.main import main
from eri_runtime.sampling import find_sampler, samplers_for


def test_the_table_lists_every_sampler_in_80_columns(capsys):
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    firsts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert [name for name in firsts if name in SAMPLERS] == list(SAMPLERS)
    for sampler in SAMPLERS.values():
        (row,) = (line for line in lines if line.split()[0] == sampler.name)
        assert sampler.label in row


@pytest.mark.parametrize("family", ["sdxl", "sd35"])
def test_a_bundle_shows_those_that_suit_it(request, capsys, family):
    bundle = request.getfixturevalue(f"{family}_bundle")
    kind = {"sdxl": "vp", "sd35": "flow"}[family]
    assert main(["samplers", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{kind} schedule" in lines[0]
    shown = [line.split()[0] for line in lines if line.split()[0] in SAMPLERS]
    assert shown == [sampler.name for sampler in samplers_for(kind)]


def test_json_has_names_that_are_found_and_options(sd35_bundle, capsys):
    assert main(["samplers", str(sd35_bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schedule"] == "flow"
    assert found["default"] == "flow_euler"
    assert [each["name"] for each in found["samplers"]] == list(SAMPLERS)
    for each in found["samplers"]:
        sampler = SAMPLERS[each["name"]]
        assert each["suits"] == ("flow" in sampler.kinds)
        assert each["options"].keys() == sampler.options.keys()
        for name in (each["label"], *each["other_names"]):
            for kind in each["schedules"]:
                assert find_sampler(name, kind).label == sampler.label


def test_a_path_without_a_bundle_is_refused(tmp_path, capsys):
    assert main(["samplers", str(tmp_path)]) == 2
    assert "eri: " in capsys.readouterr().err
