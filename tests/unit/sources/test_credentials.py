"""What exec plugins are told and what they answer (Kubernetes, client.authentication.k8s.io/v1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hansa.errors import SourceError
from hansa.sources.kubernetes.credentials import Issued, exec_info, parse_exec_credential
from hansa.sources.kubernetes.kubeconfig import ClientCertificate, Connection, ExecPlugin, PemData

PLUGIN = ExecPlugin("plugin")
SERVER = Connection("https://h:6443", tls_server_name="kubernetes", skip_tls_verify=True, proxy="http://p")


def answer(**status: Any) -> bytes:
    return json.dumps({"apiVersion": PLUGIN.api_version, "kind": "ExecCredential", "status": status}).encode()


def test_a_plugin_learns_of_the_server_only_if_it_asks() -> None:
    assert json.loads(exec_info(PLUGIN, SERVER, b"ca")) == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    asking = ExecPlugin("plugin", wants_cluster=True)
    assert json.loads(exec_info(asking, SERVER, b"ca"))["spec"]["cluster"] == {
        "server": "https://h:6443",
        "certificate-authority-data": "Y2E=",
        "tls-server-name": "kubernetes",
        "insecure-skip-tls-verify": True,
        "proxy-url": "http://p",
    }
    assert json.loads(exec_info(asking, Connection("https://h"), None))["spec"]["cluster"] == {"server": "https://h"}


def test_tokens_and_certificates() -> None:
    assert parse_exec_credential(answer(token="t"), PLUGIN) == Issued("t", None, None)
    pair = ClientCertificate(PemData(b"c"), PemData(b"k"))
    assert parse_exec_credential(answer(clientCertificateData="c", clientKeyData="k"), PLUGIN) == Issued(
        None, pair, None
    )


def test_expiry() -> None:
    found = parse_exec_credential(answer(token="t", expirationTimestamp="1970-01-01T00:01:40Z"), PLUGIN)
    assert found.expires_at == 100.0
    assert [found.is_expired(now) for now in (99.9, 100.0)] == [False, True]
    assert not Issued("t", None, None).is_expired(1e12)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"secret",
        b"\xff",
        b"[]",
        json.dumps({"kind": "ExecCredential", "status": {"token": "secret"}}).encode(),
        json.dumps({"apiVersion": PLUGIN.api_version, "kind": "Token", "status": {"token": "secret"}}).encode(),
        answer(),
        answer(clientCertificateData="secret"),
        answer(clientKeyData="secret", token="secret"),
        answer(token="secret", expirationTimestamp="tomorrow"),
    ],
)
def test_what_is_no_credential_is_refused_without_quoting_it(output: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        parse_exec_credential(output, PLUGIN)
    assert "secret" not in str(caught.value)


def test_secrets_are_not_printed() -> None:
    assert "secret" not in repr(parse_exec_credential(answer(token="secret"), PLUGIN))
