"""Sends the server requests made from its own OpenAPI document, and counts what it answers.

    python -m benchmarks.serving_schema [--cases 12000] [--seed 0] [--small]

schemathesis makes requests that fit the document and requests that do not. Every answer must have a
status and a content type that the document names. JSON that does not fit must be refused; a form
has only text, so false is a valid prompt there. An error must be the API's error object, and a 5xx
one of those that a client may cause: a deadline that the request itself names. The engine draws
pictures of one colour at once, so the server is what is tested. Writes the counts to
benchmarks/results/serving_schema.json; exit status 1 if any answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from fastapi import FastAPI
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from eri_runtime.serve import EngineOptions
from eri_runtime.serve.http import make_app
from eri_runtime.serve.http.errors import A1111_PATH
from eri_runtime.version import eri_version
from tests.support.fake_engine import FakeEngine

RESULTS = Path(__file__).parent / "results"
SMALL = 120
BLOCK = 400
# of all cases, for those that fit the document and those that do not
SHARES = {
    ("POST", "/v1/images/generations"): (0.35, 0.2),
    ("POST", "/v1/images/edits"): (0.2, 0.2),
    ("GET", "/v1/models/{name}"): (0.025, 0),
    ("GET", "/v1/images/files/{name}"): (0.025, 0),
}
OTHER = (0.01, 0.01)  # operations with a body that are not listed
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
JSON_CHECKS = [*CHECKS, negative_data_rejection]
CAUSED = {"deadline_exceeded"}  # codes of a 5xx that a request itself may cause
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [hypothesis.Phase.generate],
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases, writes the results and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "serving_schema.json")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} cases")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    count = Counted()
    run_all(demo_app(), SMALL if options.small else options.cases, options.seed, count)
    report = count.report() | {"seed": options.seed, **versions()}
    report["seconds"] = round(time.perf_counter() - started, 1)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write(f"{report['cases']} cases, {len(count.wrong)} wrong\n")
    return 1 if count.wrong else 0


def demo_app() -> FastAPI:
    """Returns the server around an engine that draws at once, with a LoRA to name."""
    return make_app(FakeEngine(options=EngineOptions(loras={"fox": Path("fox.safetensors")})))


class Counted:
    """The answers so far.

    Attributes:
        answers: How many, by operation, by whether the request fitted, and by status and code.
        wrong: What is wrong with an answer, and the request.
    """

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, str]] = Counter()
        self.wrong: list[str] = []

    def add(self, case: schemathesis.Case, mode: GenerationMode, response: Any) -> None:
        """Counts an answer, and judges it."""
        error = error_of(case.operation.path, response) if response.status_code >= 400 else {}
        word = f"{response.status_code} {(error or {}).get('code', '')}".strip()
        fits = "fits" if mode is GenerationMode.POSITIVE else "does not fit"
        self.answers[case.operation.label, fits, word] += 1
        for reason in reasons(case, response, error):
            self.wrong.append(f"{case.operation.label}: {reason}: {str(case.body)[:300]}")

    def report(self) -> dict[str, Any]:
        """Returns the counts, for the results file."""
        operations: dict[str, Any] = {}
        for (label, mode, word), number in sorted(self.answers.items()):
            operations.setdefault(label, {}).setdefault(mode, {})[word] = number
        total = self.answers.total()
        return {"cases": total, "wrong": self.wrong[:20], "operations": operations}


def error_of(path: str, response: Any) -> dict[str, Any] | None:
    """Returns the members of the error object, or None if the answer is none.

    AUTOMATIC1111's object has its code as `error`, and its message as `detail`.
    """
    try:
        body = response.json()
        error = body if path.startswith(A1111_PATH) else body["error"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(error, dict):
        return None
    if path.startswith(A1111_PATH) and set(error) == {"error", "detail", "body", "errors"}:
        return {"code": error["error"], "message": error["detail"]}
    return error if set(error) == {"message", "type", "param", "code"} else None


def reasons(case: schemathesis.Case, response: Any, error: dict[str, Any] | None) -> list[str]:
    """Returns what is wrong with an answer."""
    found = []
    if error is None:
        found.append(f"{response.status_code} without an error object")
    elif response.status_code >= 500 and error["code"] not in CAUSED:
        found.append(f"{response.status_code}: {error['message']}")
    if not response.headers.get("x-request-id"):
        found.append("no request id")
    if case.operation.path.startswith(A1111_PATH):
        return found  # its clients expect no document
    try:
        is_json = case.media_type == "application/json"
        case.validate_response(response, checks=JSON_CHECKS if is_json else CHECKS)
    except (Failure, FailureGroup) as failure:
        each = failure.exceptions if isinstance(failure, FailureGroup) else [failure]
        found += [f"{type(one).__name__}: {str(one)[:300]}" for one in each]
    return found


def run_all(app: FastAPI, cases: int, seed: int, count: Counted) -> None:
    """Sends every operation its share of the cases, and once those that have no input."""
    load_all_checks()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for result in schema.get_all_operations():
        operation = result.ok()
        share = SHARES.get((operation.method.upper(), operation.path), OTHER)
        has_input = bool(operation.body) or bool(list(operation.path_parameters))
        numbers = [round(each * cases) for each in share] if has_input else [1, 0]
        for mode, number in zip(GenerationMode, numbers, strict=True):
            run(operation, mode, number, seed, count)


def run(operation: Any, mode: GenerationMode, number: int, seed: int, count: Counted) -> None:
    """Sends an operation a number of requests, in blocks with seeds of their own.

    A block ends early where schemathesis fails to make a request: it cannot compare files.
    """
    end = count.answers.total() + number
    for block in range(seed, seed + 2 * (number // BLOCK + 1)):
        left = min(BLOCK, end - count.answers.total())
        if left <= 0:
            return
        try:
            run_block(operation, mode, left, block, count)
        except ValueError as error:
            if "Unsupported type: 'Binary'" not in str(error):
                raise


def run_block(operation: Any, mode: GenerationMode, number: int, seed: int, count: Counted) -> None:
    """Sends an operation a number of requests."""

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=number, **SETTINGS)
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        count.add(case, mode, case.call())

    send()


def versions() -> dict[str, str]:
    """Returns the versions of what was tested and of what tested it."""
    names = ("fastapi", "starlette", "pydantic", "schemathesis", "hypothesis")
    return {"eri": eri_version()} | {name: version(name) for name in names}


if __name__ == "__main__":
    raise SystemExit(main())
