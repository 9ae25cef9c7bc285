"""Estimates the memory of a run without its weights, as polynomials in the sizes of its inputs.

`liveness` walks a graph, `polynomials` is its arithmetic, `activations` writes the manifest's
entry. Start with `activations`.
"""
