"""Kubeconfig, service account or bare address become one Connection. Parsing only: texts and facts are arguments.

Evidence: operations.md section 8; Kubernetes reference "kubeconfig (v1)" and "client authentication (v1)".
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import PurePath
from typing import TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from hansa.api.wire import salvage
from hansa.errors import ConfigError, Fault
from hansa.sources.yaml_text import YamlFault, load, split_documents

SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
EXEC_API_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
PROXY_SCHEMES = ("http", "https")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PemFile:
    """Certificates or a key in a file, which may be replaced while hansa runs."""

    path: str


@dataclass(frozen=True, slots=True)
class PemData:
    """Certificates or a key by value."""

    data: bytes = field(repr=False)


Pem = PemFile | PemData


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    certificate: Pem
    key: Pem


@dataclass(frozen=True, slots=True)
class Token:
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A bearer token in a file that is written anew before the token expires."""

    path: str


@dataclass(frozen=True, slots=True)
class BasicAuth:
    username: str
    password: str = field(repr=False)


class InteractiveMode(enum.Enum):
    """Whether an exec plugin wants a person at the keyboard; a service has none to offer."""

    NEVER = "Never"
    IF_AVAILABLE = "IfAvailable"
    ALWAYS = "Always"


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints credentials.

    environment: added to hansa's own. wants_cluster: the plugin is told how to reach the cluster. install_hint: shown
    when the program cannot be started.
    """

    command: str
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    api_version: str = EXEC_API_VERSIONS[0]
    interactive_mode: InteractiveMode = InteractiveMode.IF_AVAILABLE
    wants_cluster: bool = False
    install_hint: str = ""


Credentials = Token | TokenFile | BasicAuth | ExecPlugin


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach an API server, and as whom.

    server: URL without a slash at its end. ca: None = the system's. credentials: None = none besides a certificate.
    tls_server_name: "" = the server's host name. proxy: URL, None = reach the server directly.
    warnings: what is allowed but probably not meant.
    """

    server: str
    ca: Pem | None = None
    client_certificate: ClientCertificate | None = None
    credentials: Credentials | None = None
    tls_server_name: str = ""
    skip_tls_verify: bool = False
    proxy: str | None = field(default=None, repr=False)
    warnings: tuple[Fault, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine."""
        return _is_loopback(urlsplit(self.server).hostname or "")


def parse_kubeconfig(
    text: str, *, folder: str, context: str = "", master: str = "", environment: Mapping[str, str] | None = None
) -> Connection:
    """Read a kubeconfig. `folder` is the one it lies in, which relative paths start from.

    context: "" = the file's current-context. master: "" = the file's server. environment: for HTTPS_PROXY and its like.
    Raises ConfigError with everything that is wrong with the parts in use.
    """
    try:
        documents = [load(document) for document in split_documents(text)]
    except YamlFault as error:
        raise ConfigError(Fault("kubeconfig", str(error))) from None
    file, wrong_types = salvage(documents[0] if documents else {}, _File)
    report = _Report(folder, [Fault(_dotted(one.field), one.text, one.remedy) for one in wrong_types])
    cluster, user = _Cluster(), _User()
    at_cluster, at_user = "cluster", "user"
    name = context or file.current_context or ""
    if name:
        contexts = [(one.name, one.context) if one else _UNNAMED for one in file.contexts or ()]
        clusters = [(one.name, one.cluster) if one else _UNNAMED for one in file.clusters or ()]
        users = [(one.name, one.user) if one else _UNNAMED for one in file.users or ()]
        used, at_context = report.named("context", contexts, name, "current-context") or (_Context(), "context")
        if used.cluster:
            found_cluster = report.named("cluster", clusters, used.cluster, f"{at_context}.cluster")
            cluster, at_cluster = found_cluster or (cluster, at_cluster)
        if used.user:
            found_user = report.named("user", users, used.user, f"{at_context}.user")
            user, at_user = found_user or (user, at_user)
    elif not master:
        report.fault("current-context", "is missing", "set it, or name a context")
    ca = report.pem(
        cluster.certificate_authority, cluster.certificate_authority_data, at_cluster, "certificate-authority"
    )
    skip = cluster.insecure_skip_tls_verify or False
    if ca is not None and skip:
        at = f"{at_cluster}.insecure-skip-tls-verify"
        report.fault(at, "contradicts the certificate authority that is given", "leave one of them out")
    certificate = _client_certificate(user, at_user, report)
    credentials = _credentials(user, at_user, report)
    server = ""
    if master or cluster.server or not report.faults:
        at = "master" if master else f"{at_cluster}.server"
        server = _server_url(master or cluster.server or "", at, report, has_tls=bool(ca or certificate or skip))
    if cluster.proxy_url and urlsplit(cluster.proxy_url).scheme not in PROXY_SCHEMES:
        at = f"{at_cluster}.proxy-url"
        report.fault(at, f"{cluster.proxy_url!r} is not a proxy that hansa can use", "http:// or https://")
    if report.faults:
        raise ConfigError(*report.faults)
    connection = Connection(
        server=server,
        ca=ca,
        client_certificate=certificate,
        credentials=credentials,
        tls_server_name=cluster.tls_server_name or "",
        skip_tls_verify=skip,
        proxy=cluster.proxy_url or None,
    )
    return _finish(connection, environment or {})


def master_connection(master: str, *, environment: Mapping[str, str] | None = None) -> Connection:
    """A server address alone: no credentials. Raises ConfigError."""
    report = _Report("", [])
    server = _server_url(master, "master", report, has_tls=False)
    if report.faults:
        raise ConfigError(*report.faults)
    return _finish(Connection(server), environment or {})


def in_cluster_connection(
    environment: Mapping[str, str],
    *,
    folder: str = SERVICE_ACCOUNT_FOLDER,
    token: str | None,
    ca: bytes | None,
) -> Connection:
    """The way to the API server that a pod is given.

    folder: where this machine finds the service account's files. token, ca: contents of `token` and `ca.crt` there now,
    None if unreadable. Without a usable `ca.crt` the system's authorities are trusted, with a warning.
    Raises ConfigError.
    """
    faults: list[Fault] = []
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        text = (
            "unable to load in-cluster configuration, "
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
        )
        faults.append(Fault("environment", text, "outside a pod give --kubeconfig or --master"))
    elif not port.isdecimal() or not 0 < int(port) < 65536:
        faults.append(Fault("KUBERNETES_SERVICE_PORT", f"{port!r} is not a port"))
    token_path, ca_path = str(PurePath(folder, "token")), str(PurePath(folder, "ca.crt"))
    if not token:
        remedy = "the pod needs a ServiceAccount with automountServiceAccountToken"
        faults.append(Fault(token_path, "cannot be read" if token is None else "is empty", remedy))
    if faults:
        raise ConfigError(*faults)
    warnings = []
    if ca is None or b"-----BEGIN CERTIFICATE-----" not in ca:
        warnings.append(Fault(ca_path, "holds no certificate, so the system's authorities are trusted instead"))
    text = f"{host} is as a rule the address of a Service that this proxy itself programs"
    remedy = "give --kubeconfig or --master with an address of the control plane"
    warnings.append(Fault("KUBERNETES_SERVICE_HOST", text, remedy))
    return _finish(
        Connection(
            server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            ca=None if len(warnings) > 1 else PemFile(ca_path),
            credentials=TokenFile(token_path),
            warnings=tuple(warnings),
        ),
        environment,
    )


def proxy_from_environment(server: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that HTTPS_PROXY or HTTP_PROXY and NO_PROXY, in either case, name for `server`; None = none.

    NO_PROXY entries are host names, which cover their subdomains, `.domain` for subdomains only, addresses and CIDRs,
    each with an optional port, or `*`. This machine itself is never reached by a proxy.
    Evidence: Go, golang.org/x/net/http/httpproxy, whose reading kubeadm users rely on.
    """
    url = urlsplit(server)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    name = f"{url.scheme}_proxy"
    proxy = environment.get(name.upper()) or environment.get(name) or ""
    if not proxy or _is_loopback(host):
        return None
    excluded = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if any(_is_excluded(host, port, entry.strip().lower()) for entry in excluded.split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excluded(host: str, port: int, entry: str) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    name, colon, wanted_port = entry.rpartition(":")
    if colon and wanted_port.isdecimal() and (name.endswith("]") or ":" not in name):
        if int(wanted_port) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        suffix = entry.removeprefix("*")
        return host == suffix or host.endswith(suffix if suffix.startswith(".") else f".{suffix}")
    try:
        return address in ip_network(entry, strict=False)
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _finish(connection: Connection, environment: Mapping[str, str]) -> Connection:
    if connection.proxy is not None:
        return connection
    proxy = proxy_from_environment(connection.server, environment)
    if proxy is not None and urlsplit(proxy).scheme not in PROXY_SCHEMES:
        raise ConfigError(Fault("HTTPS_PROXY", f"{proxy!r} is not a proxy hansa can use", "http:// or https://"))
    return replace(connection, proxy=proxy)


def _server_url(given: str, at: str, report: _Report, *, has_tls: bool) -> str:
    """A URL without a slash at its end; without a scheme it is https if anything about TLS is configured."""
    if not given:
        report.fault(at, "is missing", "write https://HOST:PORT")
        return ""
    text = given if "://" in given else f"{'https' if has_tls else 'http'}://{given}"
    try:
        url = urlsplit(text)
        is_valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        is_valid = is_valid and not (url.query or url.fragment or url.username)
    except ValueError:
        is_valid = False
    if not is_valid:
        report.fault(at, f"{given!r} is not the address of a server", "write https://HOST:PORT")
    return text.rstrip("/")


class _Report:
    """What is wrong, and where relative paths start from."""

    def __init__(self, folder: str, faults: list[Fault]) -> None:
        self.faults = faults
        self._folder = folder

    def fault(self, at: str, text: str, remedy: str = "") -> None:
        self.faults.append(Fault(at, text, remedy))

    def named(
        self, kind: str, entries: list[tuple[str | None, _T | None]], name: str, at: str
    ) -> tuple[_T, str] | None:
        """The content of the entry called `name`, and its path; else a fault at the place that names it, and None."""
        for index, (given, content) in enumerate(entries):
            if given == name and content is not None:
                return content, f"{kind}s[{index}].{kind}"
        known = ", ".join(repr(given) for given, content in entries if given and content is not None)
        self.fault(at, f"there is no {kind} {name!r}", f"there are {known}" if known else f"add it under {kind}s")
        return None

    def absolute(self, path: str) -> str:
        return str(PurePath(self._folder, path))

    def pem(self, path: str | None, data: str | None, at: str, name: str) -> Pem | None:
        """The file or the data of a pair of keys like `client-key` and `client-key-data`; data wins."""
        if data:
            try:
                return PemData(base64.b64decode("".join(data.split()), validate=True))
            except (binascii.Error, ValueError):
                self.fault(f"{at}.{name}-data", "is not base64", "write the PEM text as base64, in one line")
        return PemFile(self.absolute(path)) if path else None


def _client_certificate(user: _User, at: str, report: _Report) -> ClientCertificate | None:
    certificate = report.pem(user.client_certificate, user.client_certificate_data, at, "client-certificate")
    key = report.pem(user.client_key, user.client_key_data, at, "client-key")
    if certificate is not None and key is not None:
        return ClientCertificate(certificate, key)
    has_certificate = bool(user.client_certificate or user.client_certificate_data)
    has_key = bool(user.client_key or user.client_key_data)
    if has_certificate != has_key:
        missing = "client-key" if has_certificate else "client-certificate"
        report.fault(f"{at}.{missing}", "is missing", "certificate and key are needed together")
    return None


def _credentials(user: _User, at: str, report: _Report) -> Credentials | None:
    found: list[tuple[str, Credentials]] = []
    if user.tokenFile:
        found.append(("tokenFile", TokenFile(report.absolute(user.tokenFile))))
    elif user.token:  # as a copy it grows old, so the file wins
        found.append(("token", Token(user.token)))
    if user.username:
        found.append(("username", BasicAuth(user.username, user.password or "")))
    if user.exec is not None:
        found.append(("exec", _exec_plugin(user.exec, f"{at}.exec", report)))
    if user.auth_provider is not None:
        report.fault(f"{at}.auth-provider", "is not supported", "Kubernetes 1.26 removed these; use exec")
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        report.fault(at, f"gives {names}, of which only one can be used", "leave the others out")
    return found[0][1] if found else None


def _exec_plugin(entry: _Exec, at: str, report: _Report) -> ExecPlugin:
    version = entry.apiVersion or ""
    if version not in EXEC_API_VERSIONS:
        shown = f"{version!r} is not read" if version else "is missing"
        report.fault(f"{at}.apiVersion", shown, " or ".join(EXEC_API_VERSIONS))
    command = entry.command or ""
    if not command:
        report.fault(f"{at}.command", "is missing")
    elif "/" in command or "\\" in command:  # a bare name is looked for in PATH
        command = report.absolute(command)
    try:
        mode = InteractiveMode(entry.interactiveMode or InteractiveMode.IF_AVAILABLE)
    except ValueError:
        mode = InteractiveMode.NEVER
        known = ", ".join(one.value for one in InteractiveMode)
        report.fault(f"{at}.interactiveMode", f"{entry.interactiveMode!r} is no mode", known)
    if mode is InteractiveMode.ALWAYS:
        text = "is Always, but a service has no terminal to be asked at"
        report.fault(f"{at}.interactiveMode", text, "use credentials that need no person")
    return ExecPlugin(
        command,
        tuple(one or "" for one in entry.args or ()),
        environment=tuple((one.name or "", one.value or "") for one in entry.env or () if one is not None),
        api_version=version,
        interactive_mode=mode,
        wants_cluster=entry.provideClusterInfo or False,
        install_hint=entry.installHint or "",
    )


# The file as it is written; everything may be absent or null.


class _Cluster(Struct, rename="kebab"):
    server: str | None = None
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool | None = None
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _Variable(Struct):
    name: str | None = None
    value: str | None = None


class _Exec(Struct):
    apiVersion: str | None = None
    command: str | None = None
    args: list[str | None] | None = None
    env: list[_Variable | None] | None = None
    interactiveMode: str | None = None
    provideClusterInfo: bool | None = None
    installHint: str | None = None


class _AuthProvider(Struct):
    name: str | None = None


class _User(Struct, rename="kebab"):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    tokenFile: str | None = None
    username: str | None = None
    password: str | None = None
    exec: _Exec | None = None
    auth_provider: _AuthProvider | None = None


class _Context(Struct):
    cluster: str | None = None
    user: str | None = None


class _NamedContext(Struct):
    name: str | None = None
    context: _Context | None = None


class _NamedCluster(Struct):
    name: str | None = None
    cluster: _Cluster | None = None


class _NamedUser(Struct):
    name: str | None = None
    user: _User | None = None


class _File(Struct, rename="kebab"):
    current_context: str | None = None
    contexts: list[_NamedContext | None] | None = None
    clusters: list[_NamedCluster | None] | None = None
    users: list[_NamedUser | None] | None = None


_UNNAMED = (None, None)


def _dotted(path: str) -> str:
    """Paths as people write them: `users[0].user.client-key`, where the reader of objects says `[client-key]`."""
    return re.sub(r"\[([a-z][a-z-]*)\]", r".\1", path)
