"""A dataplane in another program, which gets the rules as lines of JSON on its standard input.

What comes in: rules. What goes out: one line for each sync that has something to say: everything (`exec:COMMAND`), or
at first everything and then what has changed (`exec+changes:COMMAND`). Who calls it: the engine.
What it must never do: wait for a program that does not read, take a line for written that was not, or leave a program
that was started anew without the whole state.
Evidence: KPNG's backends that piped its state into a program; the promises in `hansa.dataplanes.base`.

>>> from hansa.dataplanes.exec.lines import parse_name
>>> parse_name("exec+changes:python3 backend.py")
ExecCommand(words=('python3', 'backend.py'), changes=True)
"""
