"""The sub-commands of `m6rec`, one file a subject: their arguments, and what they run.

A file's `add_commands` adds them to the parser. A function `run_...` takes the parsed arguments and
returns the exit status: None is 0, and 1 means that a report found something wrong. Its docstring
is its line in `m6rec --help`, hence without capital and full stop. Heavy libraries are imported
inside of it, so that `m6rec --help` and a mistyped command are answered at once.
"""
