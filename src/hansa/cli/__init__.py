"""The commands for people: each a few lines over a library call.

What comes in: arguments, environment, files. What goes out: tables on a terminal, plain text in a pipe, JSON or YAML by
`-o`; errors on standard error that say who must act; an exit code of `EXIT_CODES`. Who calls it: people and scripts.
What it must never do: decide anything about services. Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import sys
from pathlib import PurePath

from hansa.errors import ConfigError, DataplaneError, MalformedObject, SourceError

EXIT_CODES = {
    0: "done",
    1: "done, but some objects in the input could not be used; each is named on standard error",
    2: "the arguments or the configuration are wrong; nothing was done",
    3: "the source of objects cannot be read",
    4: "the host refused or cannot be reached",
    5: "`plan --exit-code`: something would change; `doctor --exit-code`: something is wrong; "
    "`trace`: rules and objects disagree, or `--live` saw no such packet",
    6: "`doctor --exit-code`: there are warnings, and nothing worse",
    130: "`run`, `proxy`, `brain`, `hns serve`: ended by an interrupt (SIGINT); rules stay in place",
    143: "`run`, `proxy`, `brain`, `hns serve`: ended by SIGTERM; rules stay in place",
}


def main() -> None:
    """Run the command line and exit. Errors that hansa raises on purpose become one message and an exit code.

    Called by the name kube-proxy, as the images link it, it is `hansa proxy`.
    """
    is_kube_proxy = PurePath(sys.argv[0]).stem == "kube-proxy"
    if is_kube_proxy or sys.argv[1:2] == ["proxy"]:
        from hansa.cli import proxy

        raise SystemExit(proxy.main(sys.argv[1 if is_kube_proxy else 2 :]))
    from hansa.cli.app import app

    try:
        app()
    except ConfigError as error:
        _fail(2, "configuration", [str(fault) for fault in error.faults])
    except MalformedObject as error:
        _fail(1, "object", [f"{error.subject}: {fault}" for fault in error.faults])
    except SourceError as error:
        _fail(3, "source", [str(error)])
    except DataplaneError as error:
        _fail(4, "host", [str(error)])


def _fail(code: int, area: str, lines: list[str]) -> None:
    for line in lines:
        print(f"hansa: {area}: {line}", file=sys.stderr)
    raise SystemExit(code)
