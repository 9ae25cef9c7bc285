"""Rewrites of a graph, one file per pass.

`PASSES` in `graphs.trace` lists the rewrites that every graph gets. Passes that depend on what the
user chose (`lora_inputs`, `slice_attention`, `split_segments`) are called by
`publishing.export_bundle`, and again by `gate.parity` for the small copy that it compares.
`values`, `node_builder` and `shape_inference` are what passes share.
"""
