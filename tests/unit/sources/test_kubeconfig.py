"""Kubeconfigs, service accounts and bare addresses (operations.md section 8)."""

from __future__ import annotations

import base64
import json
import textwrap
from pathlib import Path, PurePath
from typing import Any

import pytest

from hansa.errors import ConfigError
from hansa.sources.kubernetes.client import load_connection
from hansa.sources.kubernetes.kubeconfig import (
    BasicAuth,
    ClientCertificate,
    Connection,
    ExecPlugin,
    InteractiveMode,
    PemData,
    PemFile,
    Token,
    TokenFile,
    in_cluster_connection,
    master_connection,
    parse_kubeconfig,
    proxy_from_environment,
)

CA = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def path(posix: str) -> str:
    """As this system writes it."""
    return str(PurePath(posix))


def text(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **root: Any) -> str:
    found = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "default",
        "contexts": [{"name": "default", "context": {"cluster": "c", "user": "u", "namespace": "x"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.10:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        **root,
    }
    return json.dumps(found)


def parse(cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **fields: Any) -> Connection:
    return parse_kubeconfig(text(cluster, user), folder="/etc/hansa", **fields)


def faults_of(content: str, **fields: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_kubeconfig(content, folder="/etc/hansa", **fields)
    return [str(fault) for fault in caught.value.faults]


def test_the_kubeconfig_that_kubeadm_writes() -> None:
    content = textwrap.dedent("""
        apiVersion: v1
        kind: Config
        clusters:
        - cluster:
            certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
            server: https://cp.example:6443
          name: default
        contexts:
        - context:
            cluster: default
            namespace: default
            user: default
          name: default
        current-context: default
        users:
        - name: default
          user:
            tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
        """)
    assert parse_kubeconfig(content, folder="/var/lib/kube-proxy") == Connection(
        server="https://cp.example:6443",
        ca=PemFile(path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")),
        credentials=TokenFile(path("/var/run/secrets/kubernetes.io/serviceaccount/token")),
    )


def test_relative_paths_start_at_the_file() -> None:
    user = {"client-certificate": "pki/me.crt", "client-key": "../me.key", "exec": _exec(command="./bin/plugin")}
    found = parse({"certificate-authority": "ca.crt"}, user)
    assert found.ca == PemFile(path("/etc/hansa/ca.crt"))
    assert found.client_certificate == ClientCertificate(
        PemFile(path("/etc/hansa/pki/me.crt")), PemFile(path("/etc/hansa/../me.key"))
    )
    assert isinstance(found.credentials, ExecPlugin)
    assert found.credentials.command == path("/etc/hansa/bin/plugin")
    assert parse(user={"tokenFile": "token"}).credentials == TokenFile(path("/etc/hansa/token"))


def test_data_wins_over_files() -> None:
    data = base64.b64encode(CA).decode()
    pair = {"client-certificate-data": data, "client-certificate": "x", "client-key-data": data, "client-key": "y"}
    found = parse({"certificate-authority-data": data, "certificate-authority": "z"}, pair)
    assert found.ca == PemData(CA)
    assert found.client_certificate == ClientCertificate(PemData(CA), PemData(CA))


def test_credentials() -> None:
    assert parse(user={}).credentials is None
    assert parse(user={"token": "secret"}).credentials == Token("secret")
    assert parse(user={"token": "old", "tokenFile": "/t"}).credentials == TokenFile(path("/t")), "the file stays fresh"
    assert parse(user={"username": "me", "password": "secret"}).credentials == BasicAuth("me", "secret")


def _exec(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "client.authentication.k8s.io/v1", "command": "plugin", "interactiveMode": "Never", **fields}


def test_exec_plugin() -> None:
    entry = _exec(
        args=["get-token", "--cluster", "c"],
        env=[{"name": "PROFILE", "value": "prod"}],
        provideClusterInfo=True,
        installHint="apt install plugin",
    )
    assert parse(user={"exec": entry}).credentials == ExecPlugin(
        command="plugin",
        args=("get-token", "--cluster", "c"),
        environment=(("PROFILE", "prod"),),
        api_version="client.authentication.k8s.io/v1",
        interactive_mode=InteractiveMode.NEVER,
        wants_cluster=True,
        install_hint="apt install plugin",
    )


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"apiVersion": None}, "apiVersion: is missing"),
        (
            {"apiVersion": "client.authentication.k8s.io/v1alpha1"},
            "apiVersion: 'client.authentication.k8s.io/v1alpha1' is not",
        ),
        ({"command": ""}, "command: is missing"),
        ({"interactiveMode": "Always"}, "interactiveMode: is Always, but a service has no terminal"),
        ({"interactiveMode": "maybe"}, "interactiveMode: 'maybe' is no mode (Never, IfAvailable, Always)"),
    ],
)
def test_exec_plugins_that_cannot_work(fields: dict[str, Any], fault: str) -> None:
    (found,) = faults_of(text(user={"exec": _exec(**fields)}))
    assert found.startswith(f"users[0].user.exec.{fault}")


def test_server_settings() -> None:
    found = parse({"tls-server-name": "kubernetes", "proxy-url": "http://proxy:3128", "insecure-skip-tls-verify": True})
    assert (found.tls_server_name, found.proxy, found.skip_tls_verify) == ("kubernetes", "http://proxy:3128", True)


@pytest.mark.parametrize(
    ("given", "cluster", "expected"),
    [
        ("https://h:6443/", {}, "https://h:6443"),
        ("https://rancher/k8s/clusters/c-1/", {}, "https://rancher/k8s/clusters/c-1"),
        ("http://[::1]:8080", {}, "http://[::1]:8080"),
        ("h:8080", {}, "http://h:8080"),
        ("h:6443", {"certificate-authority": "ca.crt"}, "https://h:6443"),
    ],
)
def test_server_addresses(given: str, cluster: dict[str, Any], expected: str) -> None:
    assert parse({"server": given, **cluster}).server == expected


@pytest.mark.parametrize(
    "given", ["ftp://h", "https://", "https://h:99999", "https://h:port", "https://h?x=1", "https://u:p@h"]
)
def test_what_is_no_server_address(given: str) -> None:
    (found,) = faults_of(text({"server": given}))
    assert found.startswith("clusters[0].cluster.server:")
    with pytest.raises(ConfigError, match="master"):
        master_connection(given)


def test_master_wins_over_the_files_server_and_keeps_its_credentials() -> None:
    found = parse(user={"token": "secret"}, master="https://other:6443")
    assert (found.server, found.credentials) == ("https://other:6443", Token("secret"))


def test_master_alone_has_no_credentials() -> None:
    assert master_connection("http://192.0.2.10:8080") == Connection("http://192.0.2.10:8080")


def test_master_makes_do_with_an_empty_kubeconfig() -> None:
    assert parse_kubeconfig("", folder="/", master="https://h") == Connection("https://h")


def test_context_by_name() -> None:
    contexts = [{"name": "a", "context": {"cluster": "nowhere"}}, {"name": "b", "context": {"cluster": "c"}}]
    found = parse_kubeconfig(text(contexts=contexts, **{"current-context": "a"}), folder="/", context="b")
    assert found.server == "https://192.0.2.10:6443"


def test_all_faults_at_once() -> None:
    user = {"client-key": "k", "token": "t", "username": "u", "auth-provider": {"name": "gcp"}}
    cluster = {
        "server": "ftp://h",
        "certificate-authority-data": "###",
        "proxy-url": "socks5://p",
        "tls-server-name": 5,
    }
    assert faults_of(text(cluster, user)) == [
        "clusters[0].cluster.tls-server-name: expected text, got the number 5 (put it in quotes)",
        "clusters[0].cluster.certificate-authority-data: is not base64 (write the PEM text as base64, in one line)",
        "users[0].user.client-certificate: is missing (certificate and key are needed together)",
        "users[0].user.auth-provider: is not supported (Kubernetes 1.26 removed these; use exec)",
        "users[0].user: gives token and username, of which only one can be used (leave the others out)",
        "clusters[0].cluster.server: 'ftp://h' is not the address of a server (write https://HOST:PORT)",
        "clusters[0].cluster.proxy-url: 'socks5://p' is not a proxy that hansa can use (http:// or https://)",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "current-context: is missing"),
        ("- a list", "object: expected an object"),
        ("a: ]", "kubeconfig: line 1, column 4: "),
        ("a: 1\na: 2", "kubeconfig: line 2, column 1: the key 'a' is given twice"),
        (text(**{"current-context": "x"}), "current-context: there is no context 'x' (there are 'default')"),
        (text(clusters=None), "contexts[0].context.cluster: there is no cluster 'c' (add it under clusters)"),
        (text(users=[None]), "contexts[0].context.user: there is no user 'u'"),
        (text({"server": ""}), "clusters[0].cluster.server: is missing (write https://HOST:PORT)"),
        (
            text({"certificate-authority": "x", "insecure-skip-tls-verify": True}),
            "clusters[0].cluster.insecure-skip-tls-verify: contradicts",
        ),
    ],
)
def test_what_is_no_kubeconfig(content: str, fault: str) -> None:
    assert faults_of(content)[0].startswith(fault)


def test_secrets_are_not_printed() -> None:
    pair = {"client-certificate-data": "c2VjcmV0", "client-key-data": "c2VjcmV0"}
    for user in ({"token": "secret"}, {"username": "u", "password": "secret"}, pair):
        assert "secret" not in repr(parse({"proxy-url": "http://u:secret@p"}, user))


# In-cluster


def test_in_cluster() -> None:
    found = in_cluster_connection(POD, token="secret", ca=CA)
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert (found.server, found.ca) == ("https://10.96.0.1:443", PemFile(path(f"{folder}/ca.crt")))
    assert found.credentials == TokenFile(path(f"{folder}/token"))
    (warning,) = found.warnings
    assert "a Service that this proxy itself programs" in warning.text


def test_in_cluster_by_ipv6() -> None:
    found = in_cluster_connection({**POD, "KUBERNETES_SERVICE_HOST": "fd00::1"}, token="secret", ca=CA)
    assert found.server == "https://[fd00::1]:443"


@pytest.mark.parametrize("ca", [None, b"", b"nonsense"])
def test_a_bad_authority_is_only_a_warning(ca: bytes | None) -> None:
    found = in_cluster_connection(POD, token="secret", ca=ca)
    assert found.ca is None
    assert "holds no certificate" in found.warnings[0].text


@pytest.mark.parametrize("environment", [{}, {"KUBERNETES_SERVICE_HOST": "h"}, {"KUBERNETES_SERVICE_PORT": "443"}])
def test_outside_a_pod(environment: dict[str, str]) -> None:
    """The text that kube-proxy's users know, and what to do."""
    with pytest.raises(ConfigError) as caught:
        in_cluster_connection(environment, token=None, ca=None)
    first, second = caught.value.faults
    assert first.text == (
        "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
    )
    assert "--kubeconfig" in first.remedy
    assert "token" in second.field


# Proxies


@pytest.mark.parametrize(
    ("server", "environment", "expected"),
    [
        ("https://h", {}, None),
        ("https://h", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://h", {"https_proxy": "p:1"}, "http://p:1"),
        ("http://h", {"HTTPS_PROXY": "http://p:1"}, None),
        ("http://h", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": "http://p"}, None),
        ("https://localhost:6443", {"HTTPS_PROXY": "http://p"}, None),
        ("https://h", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("https://h.example.com", {"HTTPS_PROXY": "http://p", "NO_PROXY": "x, example.com"}, None),
        ("https://h.example.com", {"HTTPS_PROXY": "http://p", "no_proxy": ".example.com"}, None),
        ("https://h.example.com", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*.example.com"}, None),
        ("https://example.com", {"HTTPS_PROXY": "http://p", "NO_PROXY": ".example.com"}, "http://p"),
        ("https://badexample.com", {"HTTPS_PROXY": "http://p", "NO_PROXY": "example.com"}, "http://p"),
        ("https://10.0.0.9:6443", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://10.0.0.9:6443", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.9:6443"}, None),
        ("https://10.0.0.9:6443", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.9:443"}, "http://p"),
        ("https://10.0.0.9", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.9:443"}, None),
        ("https://[fd00::1]:6443", {"HTTPS_PROXY": "http://p", "NO_PROXY": "[fd00::1]:6443"}, None),
        ("https://[fd00::1]:6443", {"HTTPS_PROXY": "http://p", "NO_PROXY": "fd00::/64"}, None),
        ("https://192.0.2.1", {"HTTPS_PROXY": "http://p", "NO_PROXY": "example.com,,10.0.0.0/8"}, "http://p"),
    ],
)
def test_proxy_environment(server: str, environment: dict[str, str], expected: str | None) -> None:
    """kubeadm copies the proxy variables into the DaemonSet."""
    assert proxy_from_environment(server, environment) == expected
    assert master_connection(server, environment=environment).proxy == expected


def test_the_files_proxy_wins_over_the_environment() -> None:
    found = parse({"proxy-url": "http://file"}, environment={"HTTPS_PROXY": "http://environment"})
    assert found.proxy == "http://file"
    with pytest.raises(ConfigError, match="socks5"):
        parse(environment={"HTTPS_PROXY": "socks5://p"})


# Where the facts come from


def test_no_such_kubeconfig() -> None:
    with pytest.raises(ConfigError, match="stat /x: no such file or directory"):
        load_connection("/x", "", {})


def test_kubeconfig_with_a_byte_order_mark_and_relative_files(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("\ufeff" + text(user={"tokenFile": "token"}), encoding="utf-8")
    found = load_connection(str(tmp_path / "config"), "https://m", {"HTTPS_PROXY": "http://p"})
    assert found == Connection("https://m", credentials=TokenFile(str(tmp_path / "token")), proxy="http://p")


def test_master_without_kubeconfig() -> None:
    assert load_connection("", "http://m", {}) == Connection("http://m")


def test_paths_of_a_host_process_container_lie_below_its_mount_point(tmp_path: Path) -> None:
    """operations.md section 19: older runtimes show mounts only below the mount point."""
    folder = tmp_path / "var/run/secrets/kubernetes.io/serviceaccount"
    folder.mkdir(parents=True)
    (folder / "token").write_text("secret")
    (folder / "ca.crt").write_bytes(CA)
    environment = {**POD, "CONTAINER_SANDBOX_MOUNT_POINT": str(tmp_path)}
    found = load_connection("", "", environment)
    assert found.credentials == TokenFile(str(folder / "token"))
    assert found.ca == PemFile(str(folder / "ca.crt"))
    content = text(
        {"certificate-authority": "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"},
        {"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"},
    )
    (tmp_path / "var/lib").mkdir()
    (tmp_path / "var/lib/hansa-test.conf").write_text(content)
    found = load_connection("/var/lib/hansa-test.conf", "", environment)
    assert found.credentials == TokenFile(str(folder / "token"))
    assert found.ca == PemFile(str(folder / "ca.crt"))
