"""The guide's table of nodes and kernels is that of the results file."""

from __future__ import annotations

import json

from benchmarks.cuda_graphs import RESULTS
from tests.docs.pages import ROOT

GUIDE = ROOT / "docs" / "guides" / "engines.md"
FAMILIES = {"SDXL": "sdxl", "SD3.5": "sd35", "Flux": "flux"}
PARTS = {"a step": ("denoiser", "-step"), "VAE decoder": ("vae_decoder", "")}


def shown(row):
    if "refused" in row:
        return "does not open"
    return f"{row['on_cuda'] + row['on_host']} / {row['on_host']} / {row['kernels']}"


def test_the_guide_has_the_results():
    rows = {row["graph"]: row for row in json.loads(RESULTS.read_text())["graphs"]}
    compared = 0
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        family, _, rest = cells[0].partition(", ")
        if family in FAMILIES and len(cells) == 3:
            precision, _, part = rest.partition(", ")
            component, end = PARTS[part]
            name = f"{FAMILIES[family]}-{precision}-{component}-dynamic"
            assert cells[1:] == [shown(rows[f"{name}-plain{end}"]), shown(rows[f"{name}{end}"])]
            compared += 1
    assert compared == 18
    assert all(row.get("copy_nodes", 0) == 0 for row in rows.values())
