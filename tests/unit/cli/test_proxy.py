"""What `hansa proxy` prints and how it ends, without a cluster. Evidence: operations.md 1, 2, 5 and 6."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from hansa.cli import proxy

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
Output = tuple[int, str, str]


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("hansa")
    handlers, levels = root.handlers[:], (root.level, own.level)
    for name in ("KUBE_NETWORK", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    root.handlers[:] = []  # another test's may write to a stream that is closed by now
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    def run(*arguments: object) -> Output:
        code = proxy.main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def messages(err: str) -> list[str]:
    """Sentence and keys of each log line."""
    return [line.partition("] ")[2] for line in err.splitlines() if line[:1] in "IWE" and "] " in line]


def failure(err: str) -> str:
    [line] = [one for one in messages(err) if one.startswith('"command failed"')]
    return line.removeprefix('"command failed" err="').removesuffix('"').replace('\\"', '"')


def test_help_goes_to_standard_output(call: Callable[..., Output]) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert "--cluster-cidr string" in out


def test_versions(call: Callable[..., Output]) -> None:
    assert call("--version") == (0, "Kubernetes v1.36.2\n", "")
    code, out, _ = call("--version=raw")
    assert code == 0
    assert out.startswith('version.Info{Major:"1", Minor:"36", GitVersion:"v1.36.2"')
    code, out, err = call("--version=v1.36.2-mine", "--write-config-to=/nonexistent/x")
    assert (code, out) == (1, "")
    assert failure(err) == "open /nonexistent/x: no such file or directory", "it runs on"


def test_a_flag_error_is_the_last_line_after_the_usage(call: Callable[..., Output]) -> None:
    code, out, err = call("--bogus")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "Error: unknown flag: --bogus"
    assert "--cluster-cidr string" in err


def test_deprecated_flags_are_told_on_standard_error(call: Callable[..., Output], tmp_path: Path) -> None:
    _, _, err = call("--healthz-port=1", f"--write-config-to={tmp_path}/x")
    assert err.splitlines()[0].startswith("Flag --healthz-port has been deprecated, ")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, "failed complete: open CONFIG: no such file or directory"),
        (
            "apiVersion: v1\nkind: ConfigMap\n",
            'failed complete: failed to decode: kind: no kind "ConfigMap" is registered for version "v1"',
        ),
        (
            f"{HEAD}iptables: {{syncPeriod: 30}}\noomScoreAdj: x\n",
            "failed complete: failed to decode: [iptables.syncPeriod: cannot unmarshal number 30 into duration, "
            "oomScoreAdj: cannot unmarshal string into integer]",
        ),
        (
            f"{HEAD}a: [\n",
            "failed complete: failed to decode: yaml: line 4, column 1: while parsing a flow node, did not find "
            "expected node content",
        ),
        (
            "",
            "failed complete: failed to decode: couldn't get version/kind: there is no KubeProxyConfiguration in it",
        ),
        (
            f"{HEAD}logging: {{format: xml}}\n",
            'initialize logging: format: Invalid value: "xml": Unsupported log format',
        ),
        (
            f"{HEAD}oomScoreAdj: 5000\n",
            "failed validate: KubeProxyConfiguration.KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 5000: "
            "must be within the range [-1000, 1000]",
        ),
        (
            f"{HEAD}clientConnection: {{kubeconfig: /nonexistent}}\n",
            "kubeconfig: stat /nonexistent: no such file or directory",
        ),
        (
            HEAD,
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be",
        ),
        (
            f"{HEAD}---\napiVersion: config.hansa/v1alpha1\nkind: HansaConfiguration\nbogus: 1\n",
            "failed complete: failed to decode: bogus: is no setting of hansa's own",
        ),
    ],
)
def test_errors_of_the_file_and_after_it(
    call: Callable[..., Output], tmp_path: Path, text: str | None, wanted: str
) -> None:
    config = tmp_path / "config.conf"
    if text is not None:
        config.write_text(text)
    code, out, err = call(f"--config={config}", f"--lock={tmp_path}/lock")
    assert (code, out) == (1, "")
    assert wanted.replace("CONFIG", str(config)) in failure(err)


def test_how_to_mend_it_comes_after_the_error(call: Callable[..., Output]) -> None:
    _, _, err = call("--oom-score-adj=5000", "--kube-api-burst=-1")
    said = messages(err)
    assert said[-3].startswith('"command failed"')
    assert said[-2:] == [
        '"how to mend it" remedy="oomScoreAdj: kube-proxy\'s own is -999"',
        '"how to mend it" remedy="clientConnection.burst: 0 leaves it as it is; or leave it out"',
    ]


def test_flags_are_logged_from_verbosity_1_on(call: Callable[..., Output], tmp_path: Path) -> None:
    for level, wanted in ((0, 0), (1, 1)):
        _, _, err = call(f"-v{level}", "--cluster-cidr=10.0.0.0/8", f"--write-config-to={tmp_path}/x")
        assert err.count('FLAG: --cluster-cidr="10.0.0.0/8"') == wanted


def test_a_written_configuration_reads_back_and_changes_nothing(call: Callable[..., Output], tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    flags = ("--proxy-mode=nftables", "--cluster-cidr=10.0.0.0/8", "--iptables-sync-period=20s", "--vmodule=a=2")
    code, out, err = call(*flags, f"--write-config-to={first}")
    assert (code, out) == (0, "")
    assert messages(err) == [f'"Wrote configuration" file="{first}"']
    assert call(f"--config={first}", f"--write-config-to={second}")[0] == 0
    assert first.read_text() == second.read_text()
    written = yaml.safe_load(first.read_text())
    assert written["nftables"]["syncPeriod"] == "20s"
    assert written["iptables"]["syncPeriod"] == "0s"
    assert list(written) == sorted(written)


def test_nothing_is_written_when_something_is_wrong(call: Callable[..., Output], tmp_path: Path) -> None:
    assert call("--oom-score-adj=5000", f"--write-config-to={tmp_path}/x")[0] == 1
    assert not (tmp_path / "x").exists()


def test_one_file_may_hold_both_kinds(call: Callable[..., Output], tmp_path: Path) -> None:
    config = tmp_path / "config.conf"
    own = "---\napiVersion: config.hansa/v1alpha1\nkind: HansaConfiguration\nacceptModes: [ipvs]\n"
    config.write_text(f"{HEAD}mode: ipvs\n{own}")
    _, _, err = call(f"--config={config}", f"--write-config-to={tmp_path}/x")
    assert any("nftables works in its place, as --accept-mode allows" in one for one in messages(err))
    config.write_text(f"{HEAD}mode: ipvs\n")
    (tmp_path / "own.yaml").write_text(own)
    assert call(f"--config={config}", f"--hansa-config={tmp_path}/own.yaml", f"--write-config-to={tmp_path}/x")[0] == 0
    assert call(f"--config={config}", f"--write-config-to={tmp_path}/x")[0] == 1
    assert call(f"--config={config}", f"--hansa-config={config}", f"--write-config-to={tmp_path}/x")[0] == 1


def test_keys_given_twice_are_told_and_the_last_counts(call: Callable[..., Output], tmp_path: Path) -> None:
    config = tmp_path / "config.conf"
    config.write_text(f"{HEAD}mode: iptables\nmode: nftables\n")
    code, _, err = call(f"--config={config}", f"--write-config-to={tmp_path}/x")
    assert code == 0
    [lenient] = [one for one in messages(err) if "lenient" in one]
    assert "Using lenient decoding as strict decoding failed" in lenient
    assert "'mode' is given twice" in lenient
    assert yaml.safe_load((tmp_path / "x").read_text())["mode"] == "nftables"


@pytest.mark.parametrize("flag", ["--cleanup", "--init-only"])
def test_one_shot_modes_that_windows_has_not(call: Callable[..., Output], flag: str) -> None:
    code, _, err = call(flag, "--hns=emulator")
    assert code == 1
    assert failure(err) == f"{flag} is not implemented on Windows"


def test_an_unknown_dataplane_is_named_with_those_there_are(call: Callable[..., Output], tmp_path: Path) -> None:
    code, _, err = call("--dataplane=bogus", f"--source={tmp_path}", f"--lock={tmp_path}/lock")
    assert code == 1
    assert failure(err) == "--dataplane: 'bogus' is not available"
    assert "nftables" in messages(err)[-1]
