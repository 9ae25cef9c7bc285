"""Some tensors of a LoRA's file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class SelectedTensors(Mapping[str, Any]):
    """The tensors with these keys, read on demand.

    Attributes:
        metadata: The whole file's.
    """

    def __init__(self, tensors: Mapping[str, Any], keys: Iterable[str]) -> None:
        self.metadata = getattr(tensors, "metadata", {})
        self._tensors, self._keys = tensors, dict.fromkeys(keys)

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
