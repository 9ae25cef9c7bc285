"""`manifest.json` to `Bundle` and back: strict, because everything downstream trusts it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from eri_runtime.errors import ManifestError, NotABundleError
from eri_runtime.spec import MANIFEST, SCHEMA, Bundle

FIX = "export the checkpoint again with `eri export`"


def read(root: str | Path) -> Bundle:
    """Read the manifest of the bundle at `root`; the files it names are not opened.

    Raises `NotABundleError` where there is no manifest and `ManifestError` where it is not one.
    """
    root = Path(root)
    path = root / MANIFEST
    if not path.is_file():
        found = "no manifest.json" if root.is_dir() else "no such folder"
        fix = "make a bundle with `eri export CHECKPOINT -o FOLDER`"
        raise NotABundleError(root, got=found, expected="the folder of a bundle", fix=fix)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ManifestError(path, got=error, expected="readable JSON", fix=FIX) from error
    return parse(data, root)


def parse(data: Any, root: Path) -> Bundle:
    """The `Bundle` that a manifest's JSON value describes."""
    where = str(root / MANIFEST)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ManifestError(f"{where}: schema", got=schema, expected=SCHEMA, fix=FIX)
    fields = {key: value for key, value in data.items() if key != "schema"}
    bundle = _record(Bundle, {**fields, "root": root}, where)
    _check_files(bundle, where)
    _check_parts(bundle, where)
    return bundle


def dump(bundle: Bundle) -> str:
    """The manifest's JSON text; `root` is where the bundle lies, so it is left out."""
    data = dataclasses.asdict(bundle)
    del data["root"]
    return json.dumps({"schema": SCHEMA, **data}, indent=2) + "\n"


def _check_files(bundle: Bundle, where: str) -> None:
    """Every file a component or tokenizer names is listed, and none lies outside the bundle."""
    for name in bundle.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            expected = "a path inside the bundle"
            raise ManifestError(f"{where}: files", got=name, expected=expected, fix=FIX)
    named = [tokenizer.file for tokenizer in bundle.tokenizers.values()]
    for component in bundle.components.values():
        named += [component.graph, component.weights, *filter(None, [component.step])]
        named += [segment.graph for segment in component.segments]
    for name in [*named, *bundle.plans]:
        if name not in bundle.files:
            expected = "its size and sha256 under `files`"
            raise ManifestError(f"{where}: {name}", got="none", expected=expected, fix=FIX)


def _check_parts(bundle: Bundle, where: str) -> None:
    """A denoiser is always there, and a tokenizer for every text encoder that is."""
    _check_present("denoiser", bundle.components, f"{where}: components")
    for name in bundle.components:
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            _check_present(tokenizer, bundle.tokenizers, f"{where}: tokenizers")
    for file, plan in bundle.plans.items():
        _check_present(plan.component, bundle.components, f"{where}: plans.{file}")


def _check_present(name: str, parts: Mapping[str, object], where: str) -> None:
    _expect(name in parts, sorted(parts), where, f"{name} among them")


def _value(kind: Any, data: Any, where: str) -> Any:
    """`data` as the annotated type `kind`, or a `ManifestError` that names the place."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where)
    if origin is Literal:
        return _expect(data in arguments, data, where, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        _expect(isinstance(data, list), data, where, "a list")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is Mapping:
        _expect(isinstance(data, dict), data, where, "an object")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if origin in (Union, UnionType):
        return _expect(type(data) in arguments, data, where, str(kind))
    if kind is float:
        _expect(type(data) in (int, float), data, where, "a number")
        return float(data)
    # an exact match, because a JSON true is also a Python int; paths come from `read`, not JSON
    fits = isinstance(data, kind) if kind is Path else type(data) is kind
    return _expect(fits, data, where, kind.__name__)


def _record(kind: Any, data: Any, where: str) -> Any:
    """An object as the dataclass `kind`: no field missing, none unknown."""
    _expect(isinstance(data, dict), data, where, "an object")
    hints = _hints(kind)
    for key in data:
        _expect(key in hints, key, where, f"one of {', '.join(hints)}")
    for field in dataclasses.fields(kind):
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        _expect(has_default or field.name in data, "nothing", f"{where}.{field.name}", "a value")
    return kind(**{key: _value(hints[key], item, f"{where}.{key}") for key, item in data.items()})


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """The types of a record's fields; a graph that takes LoRAs has a thousand inputs."""
    return get_type_hints(kind)


def _expect(holds: bool, data: Any, where: str, expected: str) -> Any:
    if not holds:
        raise ManifestError(where, got=repr(data), expected=expected, fix=FIX)
    return data
