"""The tokens that textual inversions add to a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.checks import text
from eri_runtime.errors import LoraError, UnknownNameError, UsageError, short
from eri_runtime.text import TextEncoders, as_read
from eri_runtime.weights import (
    LiveWeights,
    TextualInversion,
    WeightOverlays,
    read_textual_inversions,
    token_table,
)

Rows = Mapping[str, Mapping[str, Mapping[int, NDArray[np.float32]]]]  # by token and component


class TextualInversions:
    """Adds tokens to a pipeline's tokenizers and their embeddings to its CLIPs.

    A method that raises an error has changed nothing. Tokens and embeddings change together, while
    no other thread generates.

    Args:
        bundle: The bundle.
        live: Its open components.
        weights: The layers of weights, which get the embeddings.
        encoders: The text encoders with their tokenizers.
    """

    def __init__(
        self, bundle: Bundle, live: LiveWeights, weights: WeightOverlays, encoders: TextEncoders
    ) -> None:
        self._bundle, self._live, self._weights = bundle, live, weights
        self._encoders = encoders
        self._rows: Rows = {}

    @property
    def tokens(self) -> tuple[str, ...]:
        """The added tokens, in the order they were loaded."""
        return tuple(self._rows)

    def load(self, source: str | Path | Mapping[str, Any], token: str | None) -> tuple[str, ...]:
        """Adds the tokens of a file and returns them; see `Pipeline.load_textual_inversion`."""
        widths = {name: width for name, (_, width) in self._tables().items()}
        inversions = read_textual_inversions(source, token, self._bundle.family, widths)
        with self._weights.changing():
            before, rows = self._rows, dict(self._rows)
            try:
                for inversion in inversions:
                    if as_read(inversion.token) in map(as_read, rows):
                        raise UsageError(
                            f"token {short(inversion.token)}",
                            got="a token that is loaded",
                            expected="a new one",
                            fix="unload it, pass token=, or rename the file",
                        )
                    rows[inversion.token] = self._borrow(inversion)
                    self._set_tokens(rows)
                self._set(rows)
            except BaseException:
                self._set_tokens(before)
                raise
        return tuple(each.token for each in inversions)

    def unload(self, tokens: Iterable[str]) -> None:
        """Takes tokens out, or all; raises `UnknownNameError` for one that is not loaded."""
        with self._weights.changing():
            removed = {text("token", token) for token in tokens} or set(self._rows)
            for token in removed:
                if token not in self._rows:
                    expected = ", ".join(self._rows) or "one that is loaded"
                    raise UnknownNameError("token", got=short(token), expected=expected)
            self._set({name: own for name, own in self._rows.items() if name not in removed})
            self._set_tokens(self._rows)

    def _tables(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the CLIPs' tables of embeddings, by component."""
        tables = {}
        for name in self._bundle.components:
            if name.startswith("text_encoder"):
                shapes = self._live.stored(name).shapes
                table = token_table(shapes)
                if table:
                    tables[name] = shapes[table]
        return tables

    def _borrow(self, inversion: TextualInversion) -> dict[str, dict[int, NDArray[np.float32]]]:
        """Returns rows for the vectors of a token; raises errors if there are none."""
        borrowed = {}
        for component, vectors in inversion.vectors.items():
            tokenizer = self._encoders.tokenizer(component)
            if tokenizer.has(inversion.token):
                raise UsageError(
                    f"token {short(inversion.token)}",
                    got=f"a token of {tokenizer.name}'s own vocabulary",
                    expected="a new one",
                    fix="pass token=, such as token='<name>', or rename the file",
                )
            rows = tokenizer.spare_rows(len(vectors), self._tables()[component][0])
            if len(rows) < len(vectors):
                name = f"token {short(inversion.token)}"
                got = f"{len(vectors)} vectors, and {len(rows)} rows to borrow in {component}"
                raise LoraError(name, got=got, expected="no more vectors than rows")
            borrowed[component] = dict(zip(rows, vectors, strict=True))
        return borrowed

    def _set_tokens(self, rows: Rows) -> None:
        """Gives the tokenizers these tokens."""
        for component in self._tables():
            own = {token: [*each[component]] for token, each in rows.items() if component in each}
            self._encoders.tokenizer(component).set_tokens(own)

    def _set(self, rows: Rows) -> None:
        """Gives the text encoders these rows."""
        by_component: dict[str, dict[int, NDArray[np.float32]]] = {}
        for each in rows.values():
            for component, vectors in each.items():
                by_component.setdefault(component, {}).update(vectors)
        self._weights.set_rows(by_component)
        self._rows = rows
