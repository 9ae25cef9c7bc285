"""Traces the blocks that a network repeats once per kind instead of every time.

A transformer repeats a block up to fifty times, and tracing and optimising all of them is most of
an export's time. Two blocks are of one kind if they have the same class, settings and weights (by
name, shape and type), and are called on inputs of the same types and sizes. While the network is
traced, one operator stands in for each block; `passes.stamp_blocks` replaces it by the kind's
graph.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

DOMAIN = "eri"
BLOCK = "Block"
PATH = "path"  # the attribute of a stand-in with the path of its block

# Settings that number the layers; without a cache they change nothing in what a layer computes.
NUMBERED = frozenset({"layer_idx"})

Forward = Callable[..., Any]
Kinds = dict[object, "Kind"]
# (kind, tensors of the call, path of the block) -> tensors of the results
StandIn = Callable[["Kind", tuple[Tensor, ...], str], Sequence[Tensor]]


class _Gap:
    def __repr__(self) -> str:
        return "a tensor"


GAP = _Gap()


@dataclass(frozen=True)
class Leaves:
    """Flattened arguments or results: their tensors, and the rest with a gap for each tensor."""

    tensors: tuple[Tensor, ...]
    rest: tuple[Any, ...]
    tree: pytree.TreeSpec

    @classmethod
    def of(cls, value: Any) -> Leaves:
        """Flattens nested tuples, lists and dicts."""
        leaves, tree = pytree.tree_flatten(value)
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        rest = tuple(GAP if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(tensors, rest, tree)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """Returns the nested value with `tensors` in its gaps."""
        replacements = iter(tensors)
        leaves = [next(replacements) if leaf is GAP else leaf for leaf in self.rest]
        return pytree.tree_unflatten(leaves, self.tree)

    @property
    def signature(self) -> object:
        """Equal for two calls of one kind: shapes, types and everything that is no tensor."""
        tensors = tuple((str(tuple(tensor.shape)), tensor.dtype) for tensor in self.tensors)
        return tensors, repr(self.rest), repr(self.tree)


@dataclass(frozen=True)
class Kind:
    """Blocks that differ only in the values of their weights, with one call of theirs.

    `member` is one of them, `paths` has all; `arguments` and `results` are those of the call.
    """

    member: nn.Module
    arguments: Leaves
    results: Leaves
    paths: set[str] = field(default_factory=set)

    def example(self) -> tuple[Tensor, ...]:
        """Returns inputs of the sizes the network was traced at."""
        return tuple(
            torch.empty([_hint(size) for size in tensor.shape], dtype=tensor.dtype)
            for tensor in self.arguments.tensors
        )

    @property
    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """The dynamic axes of each input."""
        return tuple(
            {
                axis: torch.export.Dim.DYNAMIC
                for axis, size in enumerate(tensor.shape)
                if _is_dynamic(size)
            }
            for tensor in self.arguments.tensors
        )


def _is_dynamic(size: object) -> bool:
    return isinstance(size, torch.SymInt)


def _hint(size: Any) -> int:
    """Returns the size that a dynamic one has in the example."""
    return int(size.node.hint) if _is_dynamic(size) else int(size)


class BlockCall(nn.Module):
    """A block as a function of tensors only; its other arguments are fixed by its kind."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.network = kind.member
        self._arguments = kind.arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors among the block's results."""
        args, kwargs = self._arguments.filled(tensors)
        return Leaves.of(self.network(*args, **kwargs)).tensors


def one_operator(kind: Kind, tensors: tuple[Tensor, ...], path: str) -> Sequence[Tensor]:
    """Stands in for a block in a trace: one operator, which names the block."""
    results: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{BLOCK}",
        tensors,
        {PATH: path},
        dtypes=[tensor.dtype for tensor in kind.results.tensors],
        shapes=[tensor.shape for tensor in kind.results.tensors],
        version=1,
    )
    return results


@contextlib.contextmanager
def stand_ins(
    network: nn.Module, classes: tuple[type[nn.Module], ...], stand_in: StandIn = one_operator
) -> Iterator[Kinds]:
    """Replaces every repeated block of `classes` while `network` is traced.

    Yields the kinds of blocks, which are added as they are called.
    """
    blocks = {path: each for path, each in network.named_modules() if isinstance(each, classes)}
    identities = {path: _identity(block) for path, block in blocks.items()}
    count = Counter(identities.values())
    repeated = {path: each for path, each in blocks.items() if count[identities[path]] > 1}
    kinds: Kinds = {}
    try:
        for path, block in repeated.items():
            block.forward = _forward(block, path, identities[path], kinds, stand_in)
        yield kinds
    finally:
        for block in repeated.values():
            del block.forward


def _forward(
    block: nn.Module, path: str, identity: object, kinds: Kinds, stand_in: StandIn
) -> Forward:
    """Returns a forward that is the stand-in; for the first of a kind it also runs the block.

    That run gives the shapes and types of the results. Nothing reads what it computes, so the
    optimiser drops it.
    """
    run: Forward = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = Leaves.of((args, kwargs))
        if any(map(_is_dynamic, arguments.rest)):
            return run(*args, **kwargs)  # a dynamic size as a number cannot be a graph's input
        kind = kinds.get((identity, arguments.signature))
        if kind is None:
            kind = Kind(block, arguments, Leaves.of(run(*args, **kwargs)))
            kinds[identity, arguments.signature] = kind
        kind.paths.add(path)
        return kind.results.filled(stand_in(kind, arguments.tensors, path))

    return forward


def _identity(block: nn.Module) -> object:
    """Returns what blocks of one kind have in common: class, settings and weights' shapes."""
    weights = tuple((name, value.shape, value.dtype) for name, value in block.state_dict().items())
    return type(block), weights, tuple(_settings(block))


def _settings(block: nn.Module) -> Iterator[tuple[str, str, object]]:
    """Yields every plain attribute of a block and of the modules inside it."""
    for path, module in block.named_modules():
        yield path, "class", type(module)
        for name, value in sorted(vars(module).items()):
            if isinstance(value, int | float | str | tuple) and name not in NUMBERED:
                yield path, name, repr(value)
