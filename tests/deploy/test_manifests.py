"""The chart and the files made of it: valid for every supported Kubernetes, readable by hansa, in kubeadm's shape.

Evidence: operations.md 13, 18, 19; Kubernetes' own schemas, by the package kubernetes-validate.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.manifests import DEPLOY, FILES, Document, documents, of_kind, pod

from hansa import __version__
from hansa.sources.kubernetes.kubeconfig import PemFile, TokenFile, parse_kubeconfig

CHART = DEPLOY / "helm" / "hansa"
OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()
API_SERVER = "https://control-plane.example:6443"
MOUNTED = "/var/lib/kube-proxy"
ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"

helm_python = pytest.importorskip("helm_python", reason="Helm's engine is on PyPI for x86_64 Linux only")


def render(values: dict[str, Any], *, name: str = "hansa", namespace: str = "kube-system") -> list[Document]:
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        made = chart.render(values, name=name, namespace=namespace)
    texts = [text for template, text in sorted(made.items()) if template.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def strict(found: Document, version: str) -> None:
    kubernetes_validate.validate(copy.deepcopy(found), version, strict=True)


def test_the_files_are_what_the_chart_says(tmp_path: Path) -> None:
    """`make manifests` has been run after the last change of the chart."""
    from tools import render_chart

    render_chart.main([str(tmp_path)])
    made = {each.name: each.read_text(encoding="utf-8") for each in tmp_path.iterdir()}
    shipped = {each.name: each.read_text(encoding="utf-8") for each in (DEPLOY / "kubernetes").iterdir()}
    assert made == shipped
    assert set(shipped) == set(FILES)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("file", FILES)
def test_kubernetes_takes_every_document_without_unknown_fields(file: str, version: str) -> None:
    found = documents(file)
    for each in found:
        strict(each, version)
    assert [each["kind"] for each in found] == [
        *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet")
    ]


def test_the_check_notices_a_field_that_is_misspelt() -> None:
    found = documents("linux.yaml")
    pod(found)["hostnetwork"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        strict(of_kind("DaemonSet", found), NEWEST)


VALUES: dict[str, dict[str, Any]] = {
    "kubeadm's ConfigMap": {"existingConfigMap": "kube-proxy"},
    "everywhere": {"apiServer": API_SERVER, "nodeSelector": {"service-proxy": None}},
    "least privilege": {"apiServer": API_SERVER, "linux": {"privileged": False}, "verbosity": 2},
    "settings": {
        "apiServer": API_SERVER,
        "config": {"clusterCIDR": "10.244.0.0/16", "nftables": {"syncPeriod": "10s"}},
        "linux": {"extraArgs": ["--nodeport-addresses=primary"], "resources": {"limits": {"memory": "1Gi"}}},
        "windows": {"config": {"winkernel": {"enableDSR": True, "networkName": "vxlan0"}}},
        "image": {"pullSecrets": [{"name": "registry"}]},
        "maxUnavailable": 1,
    },
}


@pytest.mark.parametrize("about", VALUES)
def test_what_the_chart_makes_of_values_is_valid(about: str) -> None:
    for each in render(VALUES[about], name="proxy", namespace="net"):
        strict(each, OLDEST)
        assert each["metadata"]["name"].startswith("proxy")
        assert each["kind"].startswith("ClusterRole") or each["metadata"]["namespace"] == "net"


def test_helm_has_nothing_to_say_against_the_chart() -> None:
    found = helm_python.lint(str(CHART), {"apiServer": API_SERVER}, strict=True)
    assert found["errors"] == []
    assert [each["error"] for each in found["messages"] if "icon" not in each["error"]] == []


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"linxu": {}}, "linxu"),
        ({"linux": {"privileged": "no"}}, "privileged"),
        ({"apiServer": "control-plane:6443"}, "apiServer"),
        ({"verbosity": 11}, "verbosity"),
        ({}, "set apiServer .an address of the control plane., or existingConfigMap"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], complaint: str) -> None:
    given = values if not values or "apiServer" in values else {"apiServer": API_SERVER, **values}
    with pytest.raises(helm_python.HelmError, match=complaint):
        render(given)


def test_every_value_is_in_the_schema_with_its_default() -> None:
    """A default that the schema would refuse, or that it does not know, is a mistake in one of the two."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(defaults) == set(schema["properties"]) - {"global"}
    for part in ("image", "probes", "linux", "windows"):
        assert set(defaults[part]) == set(schema["properties"][part]["properties"])


def test_a_foreign_config_map_is_used_and_none_is_made() -> None:
    found = render({"existingConfigMap": "kube-proxy"})
    assert not [each for each in found if each["kind"] == "ConfigMap"]
    for each in found:
        if each["kind"] == "DaemonSet":
            volumes = each["spec"]["template"]["spec"]["volumes"]
            assert volumes[0] == {"name": "config", "configMap": {"name": "kube-proxy"}}


def test_the_version_is_hansas() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == __version__
    for file in FILES:
        assert pod(documents(file))["containers"][0]["image"].endswith(f":{__version__}")


def test_nodes_without_the_label_keep_their_proxy() -> None:
    for file in FILES:
        assert pod(documents(file))["nodeSelector"]["service-proxy"] == "hansa"
    everywhere = render(VALUES["everywhere"])
    for each in (one for one in everywhere if one["kind"] == "DaemonSet"):
        assert list(each["spec"]["template"]["spec"]["nodeSelector"]) == ["kubernetes.io/os"]


@pytest.mark.parametrize("file", FILES)
def test_in_kubeadms_shape_with_probes(file: str) -> None:
    """operations.md 18, 19: on every node of the system, on the host's network, never evicted; /healthz is no probe."""
    found = documents(file)
    spec, (container,) = pod(found), pod(found)["containers"]
    assert of_kind("DaemonSet", found)["metadata"]["namespace"] == "kube-system"
    assert of_kind("DaemonSet", found)["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert spec["hostNetwork"] is True
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"]["kubernetes.io/os"] == ("windows" if file == "windows.yaml" else "linux")
    assert spec["serviceAccountName"] == of_kind("ServiceAccount", found)["metadata"]["name"]
    assert container["command"][-2:] == ["hansa", "proxy"]
    arguments = [f"--config={MOUNTED}/config.conf", "--hostname-override=$(NODE_NAME)"]
    journal = [r"--journal-path=C:\ProgramData\hansa\journal"] if file == "windows.yaml" else []
    assert container["args"] == [*arguments, *journal]
    assert container["env"] == [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    assert {"name": "config", "mountPath": MOUNTED, "readOnly": True} in container["volumeMounts"]
    probes = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {
        "livenessProbe": {"path": "/livez", "port": 10256},
        "readinessProbe": {"path": "/readyz", "port": 10256},
    }


def test_windows_is_a_host_process() -> None:
    spec = pod(documents("windows.yaml"))
    assert spec["securityContext"] == {"windowsOptions": {"hostProcess": True, "runAsUserName": "NT AUTHORITY\\system"}}
    assert spec["containers"][0]["command"][0].startswith("$env:CONTAINER_SANDBOX_MOUNT_POINT/")


def test_least_privilege_prepares_the_node_first_and_then_only_writes_rules() -> None:
    spec = pod(documents("linux-least-privilege.yaml"))
    (prepare,), (container,) = spec["initContainers"], spec["containers"]
    assert prepare["securityContext"] == {"privileged": True}
    assert prepare["args"] == [*container["args"], "--init-only"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True


CONFIGS = {file: of_kind("ConfigMap", documents(file))["data"] for file in FILES}
CONFIGS["own settings"] = of_kind(
    "ConfigMap",
    render(
        {
            "apiServer": API_SERVER,
            "config": {"mode": "nftables", "clusterCIDR": "10.244.0.0/16"},
            "hansaConfig": {"fullCheckPeriod": "1m", "takeover": True},
            "linux": {"hansaConfig": {"takeover": False}},
            "windows": {"enabled": False},
        }
    ),
)["data"]


@pytest.mark.parametrize("about", CONFIGS)
def test_hansa_reads_the_configuration(tmp_path: Path, about: str) -> None:
    """By the command that will read it, which warns of nothing; and the kubeconfig."""
    (tmp_path / "config.conf").write_text(CONFIGS[about]["config.conf"], encoding="utf-8")
    check = ("--config=config.conf", "--hostname-override=n1", "--write-config-to=resolved.yaml")
    done = subprocess.run(
        [Path(sys.executable).with_name("hansa"), "proxy", *check], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    told = [
        line
        for line in done.stderr.splitlines()
        if "Wrote configuration" not in line and "no mode is given" not in line
    ]
    assert told == []
    resolved = next(yaml.safe_load_all((tmp_path / "resolved.yaml").read_text(encoding="utf-8")))
    assert resolved["clientConnection"]["kubeconfig"] == f"{MOUNTED}/kubeconfig.conf"
    connection = parse_kubeconfig(CONFIGS[about]["kubeconfig.conf"], folder=MOUNTED, master="", environment={})
    assert connection.server == API_SERVER
    assert connection.ca == PemFile(f"{ACCOUNT_FOLDER}/ca.crt")
    assert connection.credentials == TokenFile(f"{ACCOUNT_FOLDER}/token")
    assert not connection.skip_tls_verify


def test_own_settings_stand_in_a_document_of_their_own() -> None:
    first, second = yaml.safe_load_all(CONFIGS["own settings"]["config.conf"])
    assert first["mode"] == "nftables"
    assert second == {
        "apiVersion": "config.hansa/v1alpha1",
        "kind": "HansaConfiguration",
        "fullCheckPeriod": "1m",
        "takeover": False,
    }
