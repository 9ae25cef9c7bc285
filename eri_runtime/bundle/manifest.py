"""Reads and writes `manifest.json`.

Reading is strict, because all later code relies on a valid `Bundle`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from eri_runtime import checks
from eri_runtime.bundle.component_spec import ShapeRange
from eri_runtime.bundle.interfaces import faults
from eri_runtime.bundle.manifest_limits import number_out_of_limits
from eri_runtime.bundle.not_a_bundle import not_a_bundle
from eri_runtime.bundle.pinned_files import FIX as LOAD_AGAIN
from eri_runtime.bundle.pinned_files import Pins, file_state
from eri_runtime.bundle.spec import COMPONENTS, MANIFEST, SCHEMA, Bundle
from eri_runtime.errors import IntegrityError, ManifestError, short
from eri_runtime.files import check_regular, parse_json, read_regular_file

OF_THIS_MACHINE = frozenset({"root", "pins"})  # fields of a bundle that are not in its manifest
FIX = "export the checkpoint again with `eri export`"


def read(root: str | Path) -> Bundle:
    """Reads the manifest of a bundle, and notes the state of every file that it names.

    Does not open these files; `eri_runtime.load` checks and opens them.

    Args:
        root: The bundle's folder, which holds `manifest.json`.

    Returns:
        The bundle that the manifest describes. Its root is the folder's full path without links.

    Raises:
        UsageError: If `root` is neither a string nor a `Path`.
        NotABundleError: If there is no such folder, or no `manifest.json` in it.
        ManifestError: If the manifest is unreadable, or an entry is missing, unknown or invalid.
        IntegrityError: If the bundle was replaced while it was read.

    Example:
        >>> bundle = eri.read_bundle(pipe.bundle.root)
        >>> bundle.family, bundle.schedule.prediction
        ('sd35', 'flow')
    """
    given = checks.path("bundle", root)
    try:
        check_regular(given / MANIFEST)
        root = given.resolve()  # stays the same when the working folder changes, or a link
        path = root / MANIFEST
        before = file_state(path)
        data = parse_json(read_regular_file(path).decode("utf-8"))
    except OSError as error:
        raise not_a_bundle(given, error) from error
    except ValueError as error:
        raise ManifestError(path, got=error, expected="readable JSON", fix=FIX) from error
    bundle = parse(data, root)
    pins = Pins({name: file_state(bundle.path(name)) for name in bundle.files})
    if before is None or not before.same_writes(file_state(path)):
        got, expected = "a bundle that was replaced while it was read", "the same manifest"
        raise IntegrityError(path, got=got, expected=expected, fix=LOAD_AGAIN)
    return dataclasses.replace(bundle, pins=pins)


def parse(data: Any, root: Path) -> Bundle:
    """Converts the manifest's parsed JSON to a `Bundle` at `root`.

    Raises `ManifestError` if an entry is missing, unknown or invalid.
    """
    where = str(root / MANIFEST)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = short(data.get("schema")) if isinstance(data, dict) else type(data).__name__
        raise ManifestError(f"{where}: schema", got=schema, expected=SCHEMA, fix=FIX)
    fields = {key: value for key, value in data.items() if key != "schema"}
    for key in fields.keys() & OF_THIS_MACHINE:
        raise ManifestError(where, got=repr(key), expected="a field of the manifest", fix=FIX)
    bundle: Bundle = _record(Bundle, {**fields, "root": root, "pins": None}, where)
    _check_files(bundle, where)
    _check_parts(bundle, where)
    _check_lengths(bundle, where)
    return bundle


def dump(bundle: Bundle) -> str:
    """Returns the manifest as JSON text, without `root` and `pins`, which depend on the machine.

    Fields that were added to the format later are left out at their defaults.
    """
    data = _plain(bundle)
    for key in OF_THIS_MACHINE:
        del data[key]
    return json.dumps({"schema": SCHEMA, **data}, indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Converts dataclasses to dictionaries, as `dataclasses.asdict` does."""
    if dataclasses.is_dataclass(value):
        fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: _plain(item)
            for field, item in fields.items()
            if not (field.metadata.get("added") and item == _default(field))
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _default(field: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field that has one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _check_files(bundle: Bundle, where: str) -> None:
    """Raises `ManifestError` if a path leaves the bundle, or a used file is not in `files`."""
    for name in bundle.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or set(name) & {"\\", "\0"}:
            expected = "a path inside the bundle"
            raise ManifestError(f"{where}: files", got=short(name), expected=expected, fix=FIX)
    named = [tokenizer.file for tokenizer in bundle.tokenizers.values()]
    for component in bundle.components.values():
        named += [component.graph, component.weights, *filter(None, [component.step])]
        named += [part.graph for part in (*component.segments, *component.step_cache)]
    for name in [*named, *bundle.plans]:
        if name not in bundle.files:
            expected = "its size and sha256 under `files`"
            raise ManifestError(f"{where}: {name}", got="none", expected=expected, fix=FIX)


def _check_parts(bundle: Bundle, where: str) -> None:
    """Raises `ManifestError` if the denoiser or a text encoder's tokenizer is missing.

    Also raises it for a component whose inputs, outputs and ranges are not those of its name and
    family, and for a plan whose component is missing.
    """
    _check_present("denoiser", bundle.components, f"{where}: components")
    for name in bundle.components:
        _expect(name in COMPONENTS[bundle.family], name, f"{where}: components", _names(bundle))
        for place, got, expected in faults(bundle, name):
            _expect(False, got, f"{where}: components.{name}.{place}", expected)
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            _check_present(tokenizer, bundle.tokenizers, f"{where}: tokenizers")
    for file, plan in bundle.plans.items():
        _check_present(plan.component, bundle.components, f"{where}: plans.{file}")


def _check_lengths(bundle: Bundle, where: str) -> None:
    """Raises `ManifestError` for a list that is neither empty nor as long as what it belongs to."""
    latents, schedule, defaults = bundle.latents, bundle.schedule, bundle.defaults
    channels = f"{latents.channels} numbers, one per channel"
    steps = f"{schedule.num_train_timesteps} numbers, one per training timestep"
    for name, values, length, expected in (
        ("latents.mean", latents.mean, latents.channels, channels),
        ("latents.std", latents.std, latents.channels, channels),
        ("schedule.trained_betas", schedule.trained_betas, schedule.num_train_timesteps, steps),
        ("defaults.thresholding", defaults.thresholding, 2, "a percentile and a largest value"),
    ):
        fits = len(values) in (0, length)
        _expect(fits, f"{len(values)} numbers", f"{where}: {name}", f"{expected}, or none")


def _names(bundle: Bundle) -> str:
    """Returns the components of the bundle's family, for a message."""
    return f"one of {', '.join(COMPONENTS[bundle.family])}"


def _check_present(name: str, parts: Mapping[str, object], where: str) -> None:
    """Raises `ManifestError` if `parts` has no entry called `name`."""
    _expect(name in parts, sorted(parts), where, f"{name} among them")


def _value(kind: Any, data: Any, where: str) -> Any:
    """Converts JSON to the annotated type `kind`; raises `ManifestError` if it does not fit.

    `where` is the entry's position, for the message.
    """
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
        records = [each for each in arguments if dataclasses.is_dataclass(each)]
        if records and data is not None:
            return _record(records[0], data, where)
        return _expect(type(data) in arguments, data, where, str(kind))
    if kind is float:
        _expect(type(data) in (int, float), data, where, "a number")
        return float(data)  # `parse_json` takes no number that a float cannot hold
    # compare types exactly, since True is an int in Python; the one Path, `root`, is not from JSON
    fits = isinstance(data, kind) if kind is Path else type(data) is kind
    return _expect(fits, data, where, kind.__name__)


def _record(kind: Any, data: Any, where: str) -> Any:
    """Converts a JSON object to the dataclass `kind`.

    Raises `ManifestError` if a field is missing, unknown, of the wrong type or out of its limits.
    """
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
    values = {key: _value(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    for key, value in values.items():
        if (bad := number_out_of_limits(kind, key, value)) is not None:
            raise ManifestError(f"{where}.{key}", got=short(bad[0]), expected=bad[1], fix=FIX)
    record = kind(**values)
    if isinstance(record, ShapeRange):
        ordered = record.min <= record.opt <= record.max
        _expect(ordered, data, where, "min, opt and max in this order")
    return record


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """Returns the types of a dataclass's fields.

    Cached, because a graph with LoRA inputs has about a thousand `TensorSpec` entries.
    """
    return get_type_hints(kind)


def _expect(valid: bool, data: Any, where: str, expected: str) -> Any:
    """Returns `data` if it is `valid`; else raises `ManifestError`."""
    if not valid:
        raise ManifestError(where, got=short(data), expected=expected, fix=FIX)
    return data
