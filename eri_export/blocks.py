"""Blocks that a network repeats: found while it is traced, and traced once a kind.

A transformer is the same block fifty times, and tracing and optimising all of them is most of the
minutes of an export. Two blocks are of one kind if they have the same class, the same weights but
for their values, the same settings, and are called on inputs of the same types and sizes. While
the network is traced a stand-in takes each block's place; `passes.stamp` puts the kind's graph
there.
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
PATH = "path"  # the attribute of a stand-in that says which block it stands for

# What tells one layer of a network from the next and changes nothing it computes without a cache.
NUMBERED = frozenset({"layer_idx"})

Forward = Callable[..., Any]
Kinds = dict[object, "Kind"]


class _Gap:
    def __repr__(self) -> str:
        return "a tensor"


GAP = _Gap()


@dataclass(frozen=True)
class Leaves:
    """Arguments or results taken apart: their tensors, and the rest with a gap for each tensor."""

    tensors: tuple[Tensor, ...]
    rest: tuple[Any, ...]
    tree: pytree.TreeSpec

    @classmethod
    def of(cls, value: Any) -> Leaves:
        """The leaves of nested tuples, lists and dicts."""
        leaves, tree = pytree.tree_flatten(value)
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        rest = tuple(GAP if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(tensors, rest, tree)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The value with `tensors` for its own."""
        given = iter(tensors)
        leaves = [next(given) if leaf is GAP else leaf for leaf in self.rest]
        return pytree.tree_unflatten(leaves, self.tree)

    @property
    def signature(self) -> object:
        """What two calls of one kind have in common."""
        tensors = tuple((str(tuple(tensor.shape)), tensor.dtype) for tensor in self.tensors)
        return tensors, repr(self.rest), repr(self.tree)


@dataclass(frozen=True)
class Kind:
    """Blocks that differ in nothing but the values of their weights, and how they are called.

    `member` is one of them, `paths` are all.
    """

    member: nn.Module
    given: Leaves
    made: Leaves
    paths: set[str] = field(default_factory=set)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the sizes the network was traced at."""
        return tuple(
            torch.empty([_hint(size) for size in tensor.shape], dtype=tensor.dtype)
            for tensor in self.given.tensors
        )

    @property
    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """For each input the axes whose size is open."""
        return tuple(
            {
                axis: torch.export.Dim.DYNAMIC
                for axis, size in enumerate(tensor.shape)
                if _is_open(size)
            }
            for tensor in self.given.tensors
        )


def _is_open(size: object) -> bool:
    return isinstance(size, torch.SymInt)


def _hint(size: Any) -> int:
    """The size that an open one had in the example."""
    return int(size.node.hint) if _is_open(size) else int(size)


class BlockCall(nn.Module):
    """A block as a function of tensors alone: the other arguments are those of its kind."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.network = kind.member
        self._given = kind.given

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors among the block's results."""
        args, kwargs = self._given.filled(tensors)
        return Leaves.of(self.network(*args, **kwargs)).tensors


@contextlib.contextmanager
def stand_ins(network: nn.Module, classes: tuple[type[nn.Module], ...]) -> Iterator[Kinds]:
    """Let one operator stand for every repeated block of `classes` while `network` is traced.

    The kinds it meets are added to what it gives.
    """
    blocks = {path: each for path, each in network.named_modules() if isinstance(each, classes)}
    identities = {path: _identity(block) for path, block in blocks.items()}
    count = Counter(identities.values())
    repeated = {path: each for path, each in blocks.items() if count[identities[path]] > 1}
    kinds: Kinds = {}
    try:
        for path, block in repeated.items():
            forward = _standing_for(block, path, identities[path], kinds)
            block.forward = forward
        yield kinds
    finally:
        for block in repeated.values():
            del block.forward


def _standing_for(block: nn.Module, path: str, identity: object, kinds: Kinds) -> Forward:
    """A forward that is one operator; the first of a kind also runs, to see what it makes.

    Nothing reads what that run computes, so the optimiser drops it.
    """
    run = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = Leaves.of((args, kwargs))
        if any(map(_is_open, given.rest)):
            return run(*args, **kwargs)  # an open size as a number: no input of a graph
        kind = kinds.get((identity, given.signature))
        if kind is None:
            kind = Kind(block, given, Leaves.of(run(*args, **kwargs)))
            kinds[identity, given.signature] = kind
        kind.paths.add(path)
        results = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{BLOCK}",
            given.tensors,
            {PATH: path},
            dtypes=[tensor.dtype for tensor in kind.made.tensors],
            shapes=[tensor.shape for tensor in kind.made.tensors],
            version=1,
        )
        return kind.made.filled(results)

    return forward


def _identity(block: nn.Module) -> object:
    """What two blocks of one kind have in common, whatever they are called on."""
    weights = tuple((name, value.shape, value.dtype) for name, value in block.state_dict().items())
    return type(block), weights, tuple(_settings(block))


def _settings(block: nn.Module) -> Iterator[tuple[str, str, object]]:
    """Every plain setting of a block and of what is inside it."""
    for path, module in block.named_modules():
        yield path, "class", type(module)
        for name, value in sorted(vars(module).items()):
            if isinstance(value, int | float | str | tuple) and name not in NUMBERED:
                yield path, name, repr(value)
