"""The server answers requests made from its own OpenAPI document as the document says."""

from __future__ import annotations

import json

from benchmarks.serving_schema import Counted, demo_app, main, run_all


def test_every_answer_is_as_documented(tmp_path, capsys):
    target = tmp_path / "results.json"
    assert main(["--small", "-o", str(target)]) == 0, target.read_text()
    report = json.loads(target.read_text())
    assert report["wrong"] == []
    assert report["cases"] >= 100
    operations = report["operations"]
    generations, edits = (
        operations[f"POST /v1/images/{name}"] for name in ("generations", "edits")
    )
    assert "200" in generations["fits"]
    assert "200" in edits["fits"]
    assert "200" not in generations["does not fit"]
    assert "400 invalid_value" in edits["does not fit"]


def test_an_error_that_nobody_foresaw_is_found():
    app, count = demo_app(), Counted()
    app.state.tokens = None
    run_all(app, 40, 0, count)
    assert any("500" in each for each in count.wrong)
