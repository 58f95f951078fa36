"""Where a brain is and how to talk to it, from one text: `kpng://brain:12090?ca=/etc/hansa/ca.crt`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from hansa.errors import ConfigError, Fault

DEFAULT_PORT = 12090  # KPNG's
NODE, LOCAL, GLOBAL = "node", "local", "global"
APIS = (NODE, LOCAL, GLOBAL)
_KEYS = {"api", "ca", "cert", "key", "server-name", "tls"}


@dataclass(frozen=True, slots=True)
class Target:
    """address: `host:port` or `unix:/path`. api: "" = the node API, else localv1 where the brain has none.

    ca, certificate, key: files, "" = none; without any of them, and without `tls`, the connection is plain.
    server_name: what the brain's certificate is for, "" = the host.
    """

    address: str
    api: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    server_name: str = ""
    tls: bool = False

    @property
    def is_secure(self) -> bool:
        return self.tls or bool(self.ca or self.certificate or self.key)


def is_target(text: str) -> bool:
    """Whether `--source` names a brain."""
    return text.startswith(("kpng://", "unix:"))


def parse_target(text: str) -> Target:
    """`kpng://HOST:PORT`, `kpng://unix:/PATH` or `unix:/PATH`, with `?api=...&ca=...&cert=...&key=...`. ConfigError.

    >>> parse_target("kpng://brain?api=local").address
    'brain:12090'
    >>> parse_target("unix:///run/hansa.sock").address
    'unix:/run/hansa.sock'
    """
    body, _, query = text.removeprefix("kpng://").partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - _KEYS)
    if unknown:
        raise _fault(text, f"has no setting {unknown[0]!r}")
    if given.get("api", NODE) not in APIS:
        raise _fault(text, f"api={given['api']} is unknown")
    if bool(given.get("cert")) != bool(given.get("key")):
        raise _fault(text, "a certificate and its key go together")
    return Target(
        address=_address(text, body),
        api=given.get("api", ""),
        ca=given.get("ca", ""),
        certificate=given.get("cert", ""),
        key=given.get("key", ""),
        server_name=given.get("server-name", ""),
        tls=given.get("tls", "") in ("1", "true", "yes"),
    )


def _address(text: str, body: str) -> str:
    if body.startswith("unix:"):
        path = "/" + body.removeprefix("unix:").lstrip("/")
        if path == "/":
            raise _fault(text, "names no socket")
        return f"unix:{path}"
    try:
        parts = urlsplit(f"//{body}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise _fault(text, str(error)) from None
    if not host or parts.path.strip("/") or parts.username:
        raise _fault(text, "names no host")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fault(text: str, why: str) -> ConfigError:
    forms = (
        "kpng://HOST:PORT or unix:/PATH, then ?api=node|local|global&ca=FILE&cert=FILE&key=FILE&server-name=NAME&tls=1"
    )
    return ConfigError(Fault("--source", f"{text!r} {why}", f"write {forms}"))
