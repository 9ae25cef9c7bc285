"""A component gives the same for the same inputs, whatever it ran before.

A kernel that reads memory which no kernel of its run has written finds what an earlier run left
there, and so does one that reads an address of an earlier run.
"""

from __future__ import annotations

import pytest

from eri_runtime.executors.ort.backend import CUDA
from tests.support.cuda_stand_in.cases import COMPONENT_CASES


@pytest.mark.parametrize("case", COMPONENT_CASES, ids=str)
def test_earlier_runs_do_not_matter(case, exported):
    opened = exported(case)
    with CUDA.executor(opened.graph, opened.spec) as executor:
        first, other, again = (first_elements(executor, opened, seed) for seed in (0, 1, 0))
    assert first == again
    assert all(first[name] != other[name] for name in first)


def first_elements(executor, opened, seed):
    """The only elements that the stand-in's kernels write."""
    return {name: array.flat[0] for name, array in executor.run(opened.inputs(seed)).items()}
