"""The verbs of the program, one file each.

A verb's docstring is its help: the first line says what it does. `USAGE` shows the
command line, `FLAGS` its flags by group, `EXAMPLE` a command that works; `main` takes
the arguments and the parsed flags.
"""
