"""The `eri` command: one file per subcommand, with its options next to it.

`main` is the entry point. The subcommands `export`, `build` and `demo` belong to `eri_export`, and
are found through entry points. `parser` has the usage errors and the help, `output` what a command
prints, `interrupts` what Ctrl-C does. Nothing here imports NumPy before a command's paths are
checked. Only the exporter's commands and benchmarks import this room.
"""
