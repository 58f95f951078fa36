"""What the least-privilege manifest leaves to the container that stays is enough for it.

The process gets exactly the capabilities of the manifest, in a network namespace, with /proc/sys as containers have it:
not to be written. Evidence: operations.md 18; capabilities(7).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.deploy.manifests import documents, pod
from tests.host.linux.namespaces import missing

from hansa.demo import cluster_manifests

WHY_NOT = missing() or next(
    (
        f"needs the program {program}"
        for program in ("setpriv", "unshare", "iptables-legacy")
        if shutil.which(program) is None
    ),
    "",
)
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "can run"),
]

HANSA = Path(sys.executable).with_name("hansa")


def contained(folder: Path, before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`hansa ...` as in the container, after a preparation as root; then the tables that there are."""
    capabilities = pod(documents("linux-least-privilege.yaml"))["containers"][0]["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    kept = ",".join(f"+{each.lower()}" for each in capabilities["add"])
    script = f"""
        set -e
        ip link set lo up
        {before}
        mount -t proc proc /proc
        mount --bind -o ro /proc/sys /proc/sys
        setpriv --bounding-set=-all,{kept} --inh-caps=-all --ambient-caps=-all --no-new-privs \\
            {shlex.join([str(HANSA), *arguments])} 2> log &
        while kill -0 $! 2> /dev/null && ! grep -q 'number=1 ' log; do sleep 0.05; done
        nft list tables
        kill -TERM $! 2> /dev/null || true
        wait $! || code=$?
        cat log >&2
        exit ${{code:-0}}
    """
    return subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "bash", "-c", script],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
    )


CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
conntrack: {tcpBeLiberal: true, tcpEstablishedTimeout: 1h0m0s}
"""
NODE = ("--config=config.conf", "--hostname-override=linux-1", "--source=cluster.yaml", "--lock=lock", "-v=2")
OFF = ("--config-override=healthzBindAddress=off", "--config-override=metricsBindAddress=off")


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "not prepared"])
def test_the_containers_of_the_manifest_one_after_the_other(tmp_path: Path, prepared: bool) -> None:
    """`--init-only` sets what the configuration asks for; what stays then only writes rules, and has nothing to say.

    Beside tables of the old iptables, which have to be looked into for another proxy's chains.
    """
    (tmp_path / "cluster.yaml").write_text(cluster_manifests(), encoding="utf-8")
    (tmp_path / "config.conf").write_text(CONFIG, encoding="utf-8")
    prepare = shlex.join([str(HANSA), "proxy", *NODE, "--init-only"]) if prepared else "true"
    tables = "iptables-legacy -t nat -N OTHER; ip6tables-legacy -t filter -N OTHER"
    done = contained(tmp_path, f"{tables}; {prepare}", "proxy", *NODE, *OFF)
    assert "number=1 " in done.stderr, done
    assert " failed=0 " in done.stderr
    assert "table ip hansa" in done.stdout
    assert "table ip6 hansa" in done.stdout
    for setting in ("tcp_be_liberal cannot be set to 1", "tcp_timeout_established cannot be set to 3600"):
        assert (setting in done.stderr) is not prepared


def test_another_proxy_in_the_old_iptables_is_seen(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(cluster_manifests(), encoding="utf-8")
    (tmp_path / "config.conf").write_text(CONFIG, encoding="utf-8")
    done = contained(tmp_path, "iptables-legacy -t nat -N KUBE-SERVICES", "proxy", *NODE, *OFF, "--takeover=false")
    assert done.returncode == 1, done
    assert "chain KUBE-SERVICES in iptables-legacy -t nat" in done.stderr
    assert "hansa" not in done.stdout
