"""What an exec plugin is told, and what it answers: the client authentication API, without running anything.

Evidence: Kubernetes reference, "client.authentication.k8s.io/v1"; "client-go credential plugins".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from msgspec import Struct

from hansa.errors import SourceError
from hansa.sources.kubernetes.kubeconfig import ClientCertificate, Connection, ExecPlugin, PemData

EXEC_INFO_VARIABLE = "KUBERNETES_EXEC_INFO"


@dataclass(frozen=True, slots=True)
class Issued:
    """What a plugin has issued. expires_at: seconds since the epoch, None = good until the server refuses it."""

    token: str | None = field(repr=False)
    certificate: ClientCertificate | None
    expires_at: float | None

    def is_expired(self, wall_now: float) -> bool:
        return self.expires_at is not None and wall_now >= self.expires_at


def exec_info(plugin: ExecPlugin, connection: Connection, ca: bytes | None) -> str:
    """The value of KUBERNETES_EXEC_INFO: a plugin may need to know for which server it is asked.

    `ca` is the content of the server's certificate authority, None if there is none. Configuration that a kubeconfig
    keeps for plugins under `extensions` is not passed on.
    """
    spec: dict[str, object] = {"interactive": False}
    if plugin.wants_cluster:
        cluster: dict[str, object] = {"server": connection.server}
        if ca is not None:
            cluster["certificate-authority-data"] = msgspec.to_builtins(ca)  # bytes become base64
        if connection.tls_server_name:
            cluster["tls-server-name"] = connection.tls_server_name
        if connection.skip_tls_verify:
            cluster["insecure-skip-tls-verify"] = True
        if connection.proxy is not None:
            cluster["proxy-url"] = connection.proxy
        spec["cluster"] = cluster
    return json.dumps({"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec})


def parse_exec_credential(output: bytes, plugin: ExecPlugin) -> Issued:
    """Read what a plugin printed. Raises SourceError, without quoting the output, which may hold secrets."""
    try:
        found = _DECODER.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SourceError(f"{plugin.command} printed no ExecCredential") from None
    if found.kind != "ExecCredential" or found.apiVersion != plugin.api_version:
        raise SourceError(f"{plugin.command} printed no ExecCredential of {plugin.api_version}")
    status = found.status or _Status()
    certificate, key = status.clientCertificateData, status.clientKeyData
    if bool(certificate) != bool(key):
        raise SourceError(f"{plugin.command} issued a certificate without its key, or a key without its certificate")
    if not status.token and not certificate:
        raise SourceError(f"{plugin.command} issued neither a token nor a certificate")
    pair = ClientCertificate(PemData(certificate.encode()), PemData(key.encode())) if certificate and key else None
    expires_at = status.expirationTimestamp.timestamp() if status.expirationTimestamp else None
    return Issued(status.token or None, pair, expires_at)


class _Status(Struct):
    expirationTimestamp: datetime | None = None
    token: str | None = None
    clientCertificateData: str | None = None
    clientKeyData: str | None = None


class _ExecCredential(Struct):
    apiVersion: str | None = None
    kind: str | None = None
    status: _Status | None = None


_DECODER = msgspec.json.Decoder(_ExecCredential)
