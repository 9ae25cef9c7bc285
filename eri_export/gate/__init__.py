"""What stands between an export and its publication: every graph beside PyTorch.

`cases` says on which inputs, `real` makes those of a generation, `reduced` a copy of what is too
large, `reference` runs PyTorch, `parity` compares, `steps` a step graph with its formula,
`engines` other engines than ONNX Runtime, `report` says what was found.
"""
