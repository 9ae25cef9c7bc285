"""`eri bench`: its processes, figures, marks, comparisons and page; and one real run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from eri_runtime.bench import environment
from eri_runtime.bench.compare import compare, lines
from eri_runtime.bench.memory_watch import thin
from eri_runtime.bench.picture_distance import LIMITS, LOSSY, distance, within_limit, worst
from eri_runtime.bench.plan import reference_of
from eri_runtime.bench.record import SCHEMA, Distance, Limit, Moment, Sample, read, to_json, write
from eri_runtime.bench.report import svg
from eri_runtime.bench.report.page import page
from eri_runtime.bench.statistics import STEP, WHOLE, figure, ratio, spread, values
from eri_runtime.bench.summary import COLD, best_comparisons, ratio_to_reference
from eri_runtime.bench.worker_client import Worker
from eri_runtime.bench.worker_server import Stopwatch
from eri_runtime.commands.main import main
from eri_runtime.errors import UsageError, WorkerError
from tests.support.painted import FAST, PAINTER, ROOT, painted

ENV = {"PYTHONPATH": str(ROOT)}
EMOJI = str(ROOT / "eri_export/embedded/emoji-sd35")
PATIENCE = 300  # seconds: a busy machine is not a bug
SETUP = {"variant": "well", "bundle": "", "checkpoint": None, "threads": 1, "device": "cpu"}


# processes


def await_state(pid, state):
    """Wait until the kernel says so of a process; one that nobody waits for is gone as well."""
    end, found = time.monotonic() + 20, None
    while found != state and time.monotonic() < end:
        try:
            found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            found = "gone"
        found = "gone" if found == "Z" else found
        time.sleep(0.01)
    assert found == state


def test_a_worker_answers_and_ends(tmp_path):
    with Worker("x", PAINTER, ENV, PATIENCE) as worker:
        assert worker.ask("open", setup=SETUP)["words"] == "paint with this python"
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("draw")  # told as an error, and it goes on
        assert worker.ask("open", setup=SETUP)["precision"] == "fp32"
        worker.pause()
        await_state(worker.pid, "T")
        pid = worker.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ("crash", "exit status 3: a reason that was given"),
        ("hang", "no answer to 'draw' in 1.5 s"),
        ("missing", "BackendError: engine: got nothing"),
        ("babble", "b'no JSON', which is no answer"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told(tmp_path, variant, told):
    job = {
        "prompt": "", "seed": 0, "images": 1, "width": 8, "height": 8, "steps": 1, "guidance": 1.0,
        "tokens": 1, "latents": "", "output": str(tmp_path / "x.png"),
    }  # fmt: skip
    with Worker("x", PAINTER, ENV, PATIENCE) as worker:
        with pytest.raises(WorkerError, match=re.escape(told)):  # noqa: PT012 either may fail
            worker.ask("open", setup={**SETUP, "variant": variant})
            worker._timeout = 1.5
            worker.ask("draw", job=job)
        pid = worker.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_paused_worker_does_not_outlive_its_parent():
    code = (
        "import os, time; from eri_runtime.bench.worker_client import Worker\n"
        f"worker = Worker('x', {PAINTER!r}, {{}}, {PATIENCE})\n"
        f"worker.ask('open', setup={SETUP!r})\n"
        "worker.pause(); print(worker.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    environ = {**os.environ, **ENV}
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environ)
    await_state(int(told.stdout), "gone")


def test_parent_and_our_workers_import_no_torch(sd35_bundle, tmp_path):
    """Nor anything of the exporter: none of it can be imported here, in the workers neither."""
    blocked = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "eri_export")
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n")
    file = tmp_path / "x.json"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sitecustomize\n"
    code += "import eri_runtime.commands.main as c\nc.entry_points = lambda **_: ()\n"
    words = ["bench", str(sd35_bundle), *FAST, "1", "--backends", "cpu", "--cold", "0"]
    code += f"assert c.main({[*words, '--output', str(file)]!r}) == 0"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, stdout=subprocess.DEVNULL)
    found = read(file)
    assert found.reference == "eri/cpu"
    assert [row.counts for row in found.rows] == [True]


# figures


def test_a_stopwatch_gives_the_stages():
    clock = iter([0.0, 0.010, 0.030, 0.060, 0.100, 0.101]).__next__
    watch = Stopwatch(clock)
    for stage in ("encode", "step", "step", "decode", "png"):
        watch.mark(stage)
    assert watch.read() == {
        "encode": 10.0, "steps": [20.0, 30.0], "denoise": 50.0, "decode": 40.0, "png": 1.0,
        "total": 101.0,
    }  # fmt: skip


def sample(step, total=None):
    steps = (9.0 * step, step, step)
    return Sample(
        encode=1.0, steps=steps, denoise=sum(steps), decode=1.0, png=1.0, total=total or 10 * step
    )


def test_spreads_are_percentiles_and_steps_leave_the_first_out(record):
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.median, found.count) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((1.4, 4.6))
    assert (found.p95, found.p99) == pytest.approx((4.8, 4.96))
    assert spread([]) is None
    assert figure(sample(2.0), STEP) == [2.0, 2.0]
    assert figure(replace(sample(2.0), steps=(3.0,)), STEP) == [3.0]


def test_ratios_are_of_the_same_round(record):
    """Both become ten times slower in round two: the ratio does not."""
    mine, theirs = record.rows[2], record.rows[0]
    mine = replace(mine, samples=(sample(1.0), sample(10.0)))
    theirs = replace(theirs, samples=(sample(2.0), sample(20.0)))
    found = ratio(mine, theirs, STEP)
    assert (found.median, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert values(mine, WHOLE) == [10.0, 100.0]


def test_distances_are_of_bytes():
    pytest.importorskip("flip_evaluator")  # no wheel for Python 3.14 yet
    black = np.zeros((16, 16, 3), np.uint8)
    near = black.copy()
    near[3, 4, 1] = 51
    assert distance(black, black) == Distance(max=0, psnr=None, flip=0.0)
    found = distance(near, black)
    assert found.max == 51
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / (51**2 / black.size)), abs=1e-3)
    assert 0 < found.flip < 0.1
    assert distance(black + np.uint8(255), black).flip > 0.9
    assert worst([found, distance(black, black)]) == found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Distance(max=0, psnr=None, flip=0.0), True),
        (Distance(max=9, psnr=45.0, flip=0.02), True),
        (Distance(max=9, psnr=44.9, flip=0.0), False),
        (Distance(max=2, psnr=60.0, flip=0.03), False),
        (Distance(max=2, psnr=60.0, flip=None), True),
        (Distance(max=1, psnr=51.6, flip=0.03), True),  # rounded the other way
    ],
)
def test_a_limit_is_kept_or_not(found, expected):
    assert within_limit(found, Limit(psnr=45.0, flip=0.02)) is expected


def test_a_long_timeline_keeps_its_peak():
    moments = [Moment(t=i / 20, rss=i % 997, pss=i if i % 10 == 0 else None) for i in range(4000)]
    kept = thin(moments, 100)
    assert len(kept) <= 102
    assert max(each.rss for each in kept) == 996
    assert [each.t for each in kept] == sorted(each.t for each in kept)


# a record


def test_every_subject_has_its_row_and_failures_say_why(record):
    status = {each.name: each.status for each in record.subjects}
    assert status == {
        "torch/eager": "ok", "torch/compile": "ok", "eri/well": "ok", "eri/dark": "ok",
        "eri/crash": "failed", "eri/missing": "missing", "peer": "missing",
        "eri/well:bf16": "ok", "openvino-genai": "ok", "openvino-genai+bf16": "ok",
        "optimum-onnx": "failed",
    }  # fmt: skip
    assert [row.subject for row in record.rows] == list(status)
    assert "a reason that was given" in record.subject("eri/crash").reason
    assert "pip install" in record.subject("peer").reason
    well = record.subject("eri/well")
    assert len(well.cold_s) == 1
    assert well.memory.peak > 1 << 20
    assert {"open", "first", "second"} == well.memory.events.keys()
    assert len(record.row("eri/well", (32, 32)).samples) == 2


def test_a_row_whose_parity_failed_counts_for_nothing(record):
    dark = record.row("eri/dark", (32, 32))
    assert (dark.counts, dark.parity.passed, dark.parity.worst.max) == (False, False, 190)
    assert ratio_to_reference(record, dark, STEP) is None
    assert ratio_to_reference(record, record.row("eri/well", (32, 32)), STEP).count == 2
    fastest = replace(dark, samples=(sample(1e-6), sample(1e-6)))
    rows = tuple(fastest if row is dark else row for row in record.rows)
    found = best_comparisons(replace(record, rows=rows))
    assert {each.ours for each in found} == {"eri/well", "eri/well:bf16"}
    assert {each.figure for each in found} == {STEP, WHOLE, COLD}


def test_the_file_is_what_its_schema_says_and_comes_back_whole(record, tmp_path):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    text = to_json(record)
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(json.loads(text))) == []
    for spoil in (
        lambda r: r["rows"][0].update(counts="yes"),
        lambda r: r["rows"][3].update(counts=True),  # that of a failed parity
        lambda r: r["subjects"][4].update(reason=None),  # that of a crash
        lambda r: r["machine"].pop("cores"),
        lambda r: r.update(more=1),
    ):
        spoilt = json.loads(text)
        spoil(spoilt)
        assert list(validator.iter_errors(spoilt))
    write(tmp_path / "r.json", text)
    assert to_json(read(tmp_path / "r.json")) == text
    (tmp_path / "other.json").write_text('{"version": 1, "rows": []}')
    with pytest.raises(UsageError, match=r"other\.json"):
        read(tmp_path / "other.json")


def test_the_environment_is_this_one(record):
    assert record.machine.cores == environment.cores() >= 1
    assert record.software.versions["numpy"] == np.__version__
    assert record.workload.cases == (("a red heart", 0),)


def test_a_busy_machine_is_said(record):
    told = {}
    for load in (0.0, 50.0):
        machine = replace(record.machine, cores=2, load_before=load)
        told[load] = page(replace(record, machine=machine))
    assert "Not to be relied on" in told[50.0]
    assert "load of 50 on 2 cores" in told[50.0]
    assert "Not to be relied on" not in told[0.0]


# comparison


def slower(record, factor, subject="eri/well"):
    def row_of(row):
        if row.subject != subject:
            return replace(row, samples=(sample(1.0), sample(1.01)))
        return replace(row, samples=(sample(factor), sample(factor * 1.01)))

    return replace(record, rows=tuple(map(row_of, record.rows)))


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.05, 0), (1.2, 1)])
def test_a_regression_is_flagged_and_is_the_exit_status(record, tmp_path, capsys, factor, status):
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for file, each in zip(files, (slower(record, 1.0), slower(record, factor)), strict=True):
        write(Path(file), to_json(each))
    assert main(["bench", "--compare", *files]) == status
    told = capsys.readouterr()
    assert ("REGRESSION" in told.out) is bool(status)
    assert "warning" not in told.out
    if status:
        assert "eri/well 32x32 step: 1.00 -> 1.21 ms, 1.20  REGRESSION" in told.out
        assert main(["bench", "--compare", *files, "--threshold", "1.3"]) == 0


def test_a_median_that_moved_within_the_spread_is_no_regression(record):
    rows = [replace(r, samples=(sample(1.0), sample(2.0), sample(3.0))) for r in record.rows]
    before = replace(record, rows=tuple(rows))
    rows = [replace(r, samples=(sample(2.0), sample(2.5), sample(3.0))) for r in record.rows]
    found = compare(before, replace(record, rows=tuple(rows)))
    assert not found.regressed
    assert any("within the spread" in line for line in lines(found))


def test_what_is_lost_missing_or_of_another_machine_is_said(record):
    before = slower(record, 1.0)
    rows = [replace(r, counts=False, reason="worse") if r.subject == "eri/well" else r
            for r in before.rows if r.subject != "torch/compile"]  # fmt: skip
    machine = replace(before.machine, processor="another")
    after = replace(before, rows=tuple(rows), machine=machine)
    found = compare(before, after)
    assert found.missing == ("after: torch/compile 32x32",)
    assert found.lost == ("eri/well 32x32: worse",)
    assert found.regressed
    assert any("processor" in note for note in found.notes)


@pytest.mark.parametrize(("subject", "percent"), [("all", "0%"), ("eri/well", "20%")])
def test_ratios_to_the_reference_know_nothing_of_how_fast_the_machine_is(record, subject, percent):
    before = slower(record, 1.0)
    quick = sample(1.2), sample(1.2 * 1.01)
    rows = [
        replace(row, samples=quick) if subject in ("all", row.subject) else row
        for row in before.rows
    ]
    *_, told = (
        line
        for line in lines(compare(before, replace(before, rows=tuple(rows))))
        if "ratios to the reference" in line
    )
    assert f"moved by at most {percent}: " in told


# the page


class Tags(HTMLParser):
    """Every attribute, and every drawing as text."""

    def __init__(self):
        super().__init__()
        self.attributes = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *each) for each in attrs]

    handle_startendtag = handle_starttag


def test_the_page_is_whole_needs_nothing_else_and_has_every_row(record):
    html = page(record)
    tree = ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))
    drawings = [each for each in tree.iter("svg") if each.get("role") == "img"]
    assert len(drawings) == 3 + 1 + 1 + 7  # of the size, cold starts, peaks, processes over time
    for each in drawings:
        assert all(each.find(name).text for name in ("title", "desc"))
        identities = each.get("aria-labelledby").split()
        assert identities == [each.find("title").get("id"), each.find("desc").get("id")]
    identities = re.findall(r'\bid="([^"]+)"', html)
    assert len(identities) == len(set(identities))
    parser = Tags()
    parser.feed(html)
    linked = [v for _, name, v in parser.attributes if name in ("src", "href", "xlink:href")]
    assert len(linked) == len(list(tree.iter("img"))) > 3
    assert all(each.startswith("data:image/png;base64,") for each in linked)
    assert not re.search(r"https?://|@import|<script", html)
    assert all(f"url({mark}" not in html for mark in ("'", '"', "h", "/"))
    for table in tree.iter("tbody"):
        assert [row[0].text for row in table] == [each.name for each in record.subjects]
        for row in table:
            assert all(cell.get("data-name") for cell in row)
    marks = {row[0].text: row[-1].text for row in next(tree.iter("tbody"))}
    assert marks["eri/dark"] == "does not count: parity failed"
    assert marks["eri/crash"].startswith("failed: ")
    assert record.command in html


def test_the_page_tells_strange_words_as_they_are(record):
    subjects = tuple(replace(each, words="<script>&</script>") for each in record.subjects)
    html = page(replace(record, subjects=subjects))
    assert "<script" not in html
    assert "&lt;script&gt;&amp;" in html


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (10.0, [0, 2.5, 5, 7.5, 10]),
        (0.83, [0, 0.25, 0.5, 0.75]),
        (0.0, [0]),
        (1, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round(most, expected):
    assert svg.ticks(most) == pytest.approx(expected)


# the command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "BUNDLE"),
        (["{bundle}", "--render", "x.json"], "BUNDLE"),
        (["--render", "x.json"], "--report"),
        (["{bundle}", "--torch", "eager"], "--against"),
        (["{bundle}", "--rounds", "0"], "--rounds"),
        (["{bundle}", "--sizes", "33x32"], "width"),
        (["{bundle}", "--backends", "cpu", "cpu"], "twice"),
        (["{bundle}", "--backends", "cpu", "--step-cache", "0.1", "0.1"], "twice"),
        (["{bundle}", "--step-cache", "-1"], "step_cache_threshold"),
        (["{bundle}", "--against", EMOJI, "--peers", "optimum-openvino"], "optimum-intel+bf16"),
        (["{bundle}", "--against", EMOJI, "--peers", "optimum-onnx+bf16"], "optimum-onnx"),
        (
            ["{bundle}", "--against", EMOJI, "--peers", "optimum-onnx", "--peers-python", "y"],
            "no file y",
        ),
    ],
)
def test_bad_uses_are_refused_before_anything_is_started(sd35_bundle, capsys, words, told):
    words = [each.format(bundle=sd35_bundle) for each in words]
    assert main(["bench", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_results_are_one_json_object(record, sd35_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("eri_runtime.bench.measure.measure", lambda *_: record)
    file = tmp_path / "r.json"
    words = ["bench", str(sd35_bundle), "--seed", "3", "-o", str(file), "--json"]
    assert main(words) == 1  # of the record's subjects four failed
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert told.err.startswith(f"eri: opening {sd35_bundle}\neri: 4 of 11 subjects: got eri/crash")
    assert (facts["files"], facts["seeds"]) == ([str(file)], [3])
    assert facts["results"] == json.loads(file.read_text())
    assert main(["bench", "--compare", str(file), str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regressed"] is False


def test_the_reference_is_pytorch_then_ours():
    names = ["eri/openvino", "eri/cpu", "torch/eager"]
    assert reference_of([painted(name) for name in names]) == "torch/eager"
    assert reference_of([painted(name) for name in names[:2]]) == "eri/cpu"
    assert reference_of([painted(name) for name in names[:1]]) == "eri/openvino"


def test_one_real_run_beside_pytorch(sd35_bundle, sd35_checkpoint, tmp_path, capsys):
    """Same noise, same pictures: the worst of both seeds is within the limit of float32."""
    file, html = tmp_path / "r.json", tmp_path / "r.html"
    words = [sd35_bundle, "--against", sd35_checkpoint, "--backends", "cpu", "--torch", "eager"]
    more = ["--seed", "0", "5", "--cold", "0", "--output", file, "--report", html]
    more += ["--step-cache", "1e9"]
    assert main(["bench", *map(str, [*words, *FAST, "1", *more])]) == 0
    found = read(file)
    cached = "eri/cpu+cache=1e+09"
    assert [row.subject for row in found.rows] == ["torch/eager", "eri/cpu", cached]
    assert all(row.counts and len(row.samples) == 2 for row in found.rows), found.rows
    parity = found.rows[1].parity
    assert (parity.against, parity.limit, len(parity.cases)) == ("torch/eager", LIMITS["fp32"], 2)
    assert all(len(each.steps) == 2 and each.total > 0 for each in found.rows[1].samples)
    lossy = found.rows[2].parity
    assert (lossy.against, lossy.limit, found.subject(cached).kind) == ("eri/cpu", LOSSY, "cached")
    assert lossy.worst.psnr < parity.worst.psnr
    assert cached not in {best.ours for best in best_comparisons(found)}
    told = capsys.readouterr().out
    assert "step at 32x32, both fp32: eri/cpu takes" in told
    assert "of torch/eager (the best PyTorch)" in told
    assert "eri/cpu" in html.read_text()
