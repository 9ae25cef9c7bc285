"""Derives a network's config from the shapes of its weights, one module per network.

`shapes` also renames a published file's tensors to diffusers' names.
"""
