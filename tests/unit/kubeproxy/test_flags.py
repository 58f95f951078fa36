"""kube-proxy's command line: every flag of it, every form, every refusal. Evidence: operations.md 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.config import OWN_SETTINGS, parse_duration
from hansa.kubeproxy.flags import FLAGS, Flag, FlagError, Origin, Parsed, Type, flag_values, parse, shown, usage
from hansa.kubeproxy.keys import BY_PATH, KEYS

laws = settings(max_examples=50, deadline=None, derandomize=True)

# operations.md 2.2: name, and default as kube-proxy's help shows it.
KUBE_PROXY = {
    "config": "",
    "write-config-to": "",
    "cleanup": "false",
    "init-only": "false",
    "version": "false",
    "kubeconfig": "",
    "master": "",
    "kube-api-content-type": "application/vnd.kubernetes.protobuf",
    "kube-api-qps": "5",
    "kube-api-burst": "10",
    "hostname-override": "",
    "bind-address": "0.0.0.0",
    "healthz-bind-address": "0.0.0.0:10256",
    "metrics-bind-address": "127.0.0.1:10249",
    "healthz-port": "10256",
    "metrics-port": "10249",
    "bind-address-hard-fail": "false",
    "profiling": "false",
    "show-hidden-metrics-for-version": "",
    "proxy-mode": "",
    "feature-gates": "",
    "config-sync-period": "15m0s",
    "iptables-sync-period": "30s",
    "iptables-min-sync-period": "1s",
    "ipvs-sync-period": "30s",
    "ipvs-min-sync-period": "1s",
    "iptables-masquerade-bit": "14",
    "iptables-localhost-nodeports": "true",
    "masquerade-all": "false",
    "ipvs-scheduler": "",
    "ipvs-exclude-cidrs": "[]",
    "ipvs-strict-arp": "false",
    "ipvs-tcp-timeout": "0s",
    "ipvs-tcpfin-timeout": "0s",
    "ipvs-udp-timeout": "0s",
    "detect-local-mode": "ClusterCIDR",
    "cluster-cidr": "",
    "pod-bridge-interface": "",
    "pod-interface-name-prefix": "",
    "nodeport-addresses": "[]",
    "oom-score-adj": "-999",
    "conntrack-max-per-core": "32768",
    "conntrack-min": "131072",
    "conntrack-tcp-timeout-established": "24h0m0s",
    "conntrack-tcp-timeout-close-wait": "1h0m0s",
    "conntrack-tcp-be-liberal": "false",
    "conntrack-udp-timeout": "0s",
    "conntrack-udp-timeout-stream": "0s",
    "boot-id-file": "/proc/sys/kernel/random/boot_id",
    "machine-id-file": "/etc/machine-id,/var/lib/dbus/machine-id",
    "v": "0",
    "vmodule": "",
    "logging-format": "text",
    "log-flush-frequency": "5s",
    "log-text-split-stream": "false",
    "log-json-split-stream": "false",
    "log-text-info-buffer-size": "0",
    "log-json-info-buffer-size": "0",
}
WINDOWS = {
    "windows-service": "false",
    "source-vip": "",
    "network-name": "",
    "enable-dsr": "false",
    "root-hnsendpoint-name": "cbr0",
    "forward-healthcheck-vip": "false",
}
GONE = [
    *("logtostderr", "alsologtostderr", "log-dir", "log-file", "log-file-max-size", "one-output", "skip-headers"),
    *("skip-log-headers", "stderrthreshold", "add-dir-header", "log-backtrace-at", "proxy-port-range", "udp-timeout"),
    *("cleanup-iptables", "cleanup-ipvs"),
]

# For each type what it takes, as a value, and what it does not.
VALID: dict[Type, tuple[str, object]] = {
    Type.STRING: ("abc", "abc"),
    Type.BOOL: ("true", True),
    Type.INT: ("-7", -7),
    Type.LEVEL: ("7", 7),
    Type.COUNT: ("7", 7),
    Type.FLOAT: ("2.5", 2.5),
    Type.DURATION: ("90m", "1h30m0s"),
    Type.IP: ("192.0.2.07", "192.0.2.07"),
    Type.IP_PORT: ("[::1]:80", "[::1]:80"),
    Type.LIST: ('a,"b,c"', ("a", "b,c")),
    Type.WORDS: ("a=b,c", ("a=b,c",)),
    Type.GATES: ("A=true,B=false", {"A": True, "B": False}),
    Type.VMODULE: ("proxy*=4,x=2", ("proxy*=4", "x=2")),
    Type.QUANTITY: ("16Mi", "16Mi"),
    Type.VERSION: ("raw", "raw"),
}
INVALID: dict[Type, tuple[str, ...]] = {
    Type.STRING: (),
    Type.BOOL: ("maybe", "yes", ""),
    Type.INT: ("abc", "1.5", "", "2147483648", "\u0661"),
    Type.LEVEL: ("x", "-1", "2147483648"),
    Type.COUNT: ("0", "x"),
    Type.FLOAT: ("x", "nan", ""),
    Type.DURATION: ("5", "x", "1d", ""),
    Type.IP: ("foo", "1.2.3.4:80", ""),
    Type.IP_PORT: ("nope", "1.2.3.4:x", "1.2.3.4:0", "1.2.3.4:65536", "x:80", "[::1]", "::g:80"),
    Type.LIST: ('"a',),
    Type.WORDS: ("a", "=a"),
    Type.GATES: ("A", "A=maybe"),
    Type.VMODULE: ("a", "a=x", "=3"),
    Type.QUANTITY: ("x", "1X"),
    Type.VERSION: ("maybe", "1.36"),
}


def read(*words: str, windows: bool = True) -> Parsed:
    return parse(words, windows=windows)


def value(*words: str) -> object:
    (given_one,) = read(*words).given
    return given_one.value


def error(*words: str, windows: bool = False) -> str:
    with pytest.raises(FlagError) as caught:
        parse(words, windows=windows)
    return str(caught.value)


def test_every_flag_of_kube_proxy_is_known_with_its_default() -> None:
    assert {one.name: one.default for one in FLAGS if one.origin is Origin.KUBE_PROXY} == KUBE_PROXY
    assert {one.name: one.default for one in FLAGS if one.origin is Origin.WINDOWS} == WINDOWS
    assert [one.name for one in FLAGS if one.origin is Origin.GONE] == GONE
    assert len({one.name for one in FLAGS}) == len(FLAGS)


def test_every_setting_of_hansas_own_has_a_flag_and_so_has_nearly_every_key() -> None:
    periods = {"syncPeriod", "minSyncPeriod", "masqueradeAll", "localhostNodePorts"}  # kube-proxy's, by its sections
    assert {one.path for one in OWN_SETTINGS if not one.flag} == periods
    keys = {one.key for one in FLAGS}
    in_files_only = {
        *("clientConnection.acceptContentTypes", "portRange"),
        *("nftables.syncPeriod", "nftables.minSyncPeriod", "nftables.masqueradeAll", "nftables.masqueradeBit"),
    }
    assert {one.path for one in KEYS} - keys == in_files_only


@pytest.mark.parametrize("flag", FLAGS, ids=lambda one: one.name)
def test_every_flag_takes_what_its_type_takes_and_nothing_else(flag: Flag) -> None:
    text, wanted = VALID[flag.type]
    assert value(f"--{flag.name}={text}") == wanted
    assert value(f"--{flag.name.replace('-', '_')}={text}") == wanted
    if not flag.needs_no_value:
        assert value(f"--{flag.name}", text) == wanted
        assert error(f"--{flag.name}", windows=True) == f"flag needs an argument: --{flag.name}"
    shown_name = "-v, --v" if flag.name == "v" else f"--{flag.name}"
    for wrong in INVALID[flag.type]:
        assert error(f"--{flag.name}={wrong}", windows=True).startswith("invalid argument "), wrong
        assert f' for "{shown_name}" flag: ' in error(f"--{flag.name}={wrong}", windows=True)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda one: one.name)
def test_every_flag_says_what_it_does_or_why_it_does_nothing(flag: Flag) -> None:
    assert flag.meaning or flag.why
    assert flag.planes or flag.why, "what has no effect anywhere has a reason"
    if flag.key and flag.origin is not Origin.OWN:
        assert flag.planes == BY_PATH[flag.key].planes or flag.name == "v"


def test_forms() -> None:
    assert value("--masquerade-all") is True
    assert value("--masquerade-all=F") is False
    assert value("-v", "3") == value("-v3") == value("-v=3") == value("--v=3") == value("--v", "3") == 3
    assert value("--version") == "true"
    assert value("--nodeport-addresses=") == ()
    assert value("--bind-address", " ::1 ") == "::1"
    assert value("--healthz-bind-address=") == ""
    assert value("--healthz-bind-address=::1") == "::1"
    assert value("--healthz-bind-address=010.0.0.1:80") == "010.0.0.1:80", "octets may have leading zeros"


def test_bounds() -> None:
    for port in (1, 65535):
        assert value(f"--healthz-bind-address=0.0.0.0:{port}") == f"0.0.0.0:{port}"
    for number in (-(2**31), 2**31 - 1):
        assert value(f"--conntrack-min={number}") == number
    assert value("-v0") == 0
    assert value("--hns-call-budget=1") == 1
    assert "out of range" in error(f"--conntrack-min={-(2**31) - 1}")


def test_what_is_about_the_other_system_has_its_reason() -> None:
    for one in FLAGS:
        if one.origin is Origin.OWN and one.key:
            assert bool(one.why) is one.key.startswith("winkernel.")


def test_help_shows_defaults_that_say_something() -> None:
    lines = usage(windows=False).splitlines()
    shown_at = {
        line.split("--")[1].split(" ")[0]: lines[number + 1] for number, line in enumerate(lines) if "  --" in line
    }
    assert shown_at["conntrack-min"].endswith("(default 131072)")
    for name in ("masquerade-all", "cluster-cidr", "nodeport-addresses"):
        assert "(default" not in shown_at[name]


def test_a_bool_takes_no_word_after_it() -> None:
    assert error("--masquerade-all", "false") == '"kube-proxy" does not take any arguments, got ["false"]'


def test_repeats() -> None:
    assert value("--cluster-cidr=a", "--cluster-cidr=b") == "b"
    assert value("--nodeport-addresses=a,b", "--nodeport-addresses=c") == ("a", "b", "c")
    assert value("--feature-gates=A=true,B=true", "--feature-gates=B=false") == {"A": True, "B": False}
    assert value("--vmodule=a=1", "--vmodule=b=2") == ("a=1", "b=2")
    assert value("--config-override=a=1", "--config-override=b=2") == ("a=1", "b=2")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bogus"], "unknown flag: --bogus"),
        (["-z"], "unknown shorthand flag: 'z' in -z"),
        (["--conf=x"], "unknown flag: --conf (did you mean --config?)"),
        (["--clusterCIDR=x"], "unknown flag: --clusterCIDR (did you mean --cluster-cidr?)"),
        (["--=x"], "bad flag syntax: --=x"),
        (["---x"], "bad flag syntax: ---x"),
        (["-v"], "flag needs an argument: 'v' in -v"),
        (["--kube-api-burst"], "flag needs an argument: --kube-api-burst"),
        (["--kube-api-burst=abc"], 'invalid argument "abc" for "--kube-api-burst" flag: "abc" is not a whole number'),
        (["--v=x"], 'invalid argument "x" for "-v, --v" flag: "x" is not a whole number'),
        (["--bind-address=foo"], 'invalid argument "foo" for "--bind-address" flag: "foo" is not a valid IP address'),
        (
            ["--metrics-bind-address=nope"],
            'invalid argument "nope" for "--metrics-bind-address" flag: "nope" is not in a valid format '
            "(ip or ip:port): address nope: missing port in address",
        ),
        (
            ["--healthz-bind-address=1.2.3.4:x"],
            'invalid argument "1.2.3.4:x" for "--healthz-bind-address" flag: "x" is not a valid number',
        ),
        (
            ["--feature-gates=A"],
            'invalid argument "A" for "--feature-gates" flag: malformed pair, expect string=bool',
        ),
        (["foo"], '"kube-proxy" does not take any arguments, got ["foo"]'),
        (["-"], '"kube-proxy" does not take any arguments, got ["-"]'),
        (["--", "--v"], '"kube-proxy" does not take any arguments, got ["--v"]'),
        (["--enable-dsr"], "unknown flag: --enable-dsr (known on Windows, or with --hns)"),
    ],
)
def test_refusals_are_in_kube_proxys_words(words: list[str], text: str) -> None:
    assert error(*words) == text


def test_empty_arguments_are_passed_over() -> None:
    assert read("", "-v1", "") == read("-v1")


def test_help_ends_the_reading() -> None:
    assert read("--help", "--bogus").wants_help
    assert read("-h").wants_help
    assert error("--bogus", "--help") == "unknown flag: --bogus"


def test_flags_of_windows_are_known_there_and_to_an_emulated_one() -> None:
    for name in WINDOWS:
        words = (f"--{name}={VALID[next(one.type for one in FLAGS if one.name == name)][0]}",)
        assert error(*words).startswith("unknown flag")
        assert parse((*words, "--hns=emulator"), windows=False).get(name) is not None
        assert parse(words, windows=True).get(name) is not None


def test_deprecated_flags_work_and_say_so() -> None:
    parsed = read("--healthz-port=1", "--metrics-port=2", "--healthz-port=3")
    assert (parsed.get("healthz-port"), parsed.get("metrics-port")) == (3, 2)
    assert [note.split(",")[0] for note in parsed.notes] == [
        "Flag --healthz-port has been deprecated",
        "Flag --metrics-port has been deprecated",
    ]
    assert "healthz-port" not in usage(windows=True)


@pytest.mark.parametrize("name", GONE)
def test_flags_of_old_kube_proxies_are_accepted_unless_told_otherwise(name: str) -> None:
    flag = next(one for one in FLAGS if one.name == name)
    words = [f"--{name}"] if flag.needs_no_value else [f"--{name}", "x"]
    (note,) = read(*words).notes
    assert note.startswith(f"Flag --{name} is no longer known")
    assert error("--strict-flags", *words) == f"unknown flag: --{name}"


def test_help_names_every_flag_that_is_not_deprecated() -> None:
    text = usage(windows=False)
    for one in FLAGS:
        hidden = one.deprecated or one.origin in (Origin.GONE, Origin.WINDOWS)
        assert (f"--{one.name}" in text.split()) is not bool(hidden), one.name
    assert max(map(len, text.splitlines())) <= 110
    assert "--enable-dsr" in usage(windows=True)


def test_flag_values_are_those_in_force() -> None:
    values = dict(
        flag_values(parse(["-v2", "--nodeport-addresses=primary", "--feature-gates=B=true,A=false"], windows=False))
    )
    assert values["v"] == "2"
    assert values["nodeport-addresses"] == "[primary]"
    assert values["feature-gates"] == "A=false,B=true"
    assert values["cluster-cidr"] == ""
    assert values["iptables-sync-period"] == "30s"
    assert "enable-dsr" not in values
    assert list(values) == sorted(values)


TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


@laws
@given(
    st.lists(st.one_of(TEXTS, st.sampled_from([f"--{one.name}" for one in FLAGS]), TEXTS.map(lambda one: f"--{one}")))
)
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        parsed = parse(words, windows=True)
    except FlagError:
        pass
    else:
        assert all(shown(one.value) is not None for one in parsed.given)


@laws
@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters='"\n\r,'), min_size=1), min_size=1))
def test_a_list_reads_back(entries: list[str]) -> None:
    assert value(f"--nodeport-addresses={','.join(entries)}") == tuple(entries)


@laws
@given(st.integers(0, 10**15))
def test_durations_keep_their_length(nanoseconds: int) -> None:
    found = value(f"--iptables-sync-period={nanoseconds}ns")
    assert parse_duration(str(found)) == pytest.approx(nanoseconds / 1e9, rel=1e-9, abs=1e-9)
