"""The `eri` command: one file per subcommand, with its options next to it.

`main` is the entry point. The subcommands `export`, `build` and `demo` belong to `eri_export`, and
are found through entry points. Only the exporter's commands and benchmarks import this room.
"""
