"""What facts about a node mean, how bad it is, and that every finding says what to do."""

from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate

import pytest

from hansa.api.objects import Kind
from hansa.config import Config, WindowsConfig
from hansa.dataplanes.base import Change, Verb
from hansa.dataplanes.nftables import needs
from hansa.dataplanes.nftables.needs import IptablesRival, Missing, NftablesRival, Setting
from hansa.errors import Fault
from hansa.explain.checkup import (
    ApiFacts,
    Check,
    LinuxFacts,
    NodeFacts,
    Topic,
    WindowsFacts,
    check_api,
    check_linux,
    check_node,
    check_windows,
    skew_s,
    worst,
)
from hansa.explain.defects import Severity
from hansa.hns.api import HnsVersion
from hansa.net import IPFamily
from hansa.sources.kubernetes.calls import Tried

CONFIG = Config(node_name="n1")
NOW = 1_800_000_000.0
SERVER = "https://192.0.2.1:6443"


def tried(code: int = 200, words: str = "", skew: float = 0.0) -> Tried:
    return Tried(code, words, formatdate(NOW + skew, usegmt=True), NOW + 0.5)


def api(changed: dict[tuple[Kind, str], Tried] | None = None, skew: float = 0.0, nodes: int | None = 1) -> ApiFacts:
    answers = {(kind, verb): tried(skew=skew) for kind in Kind for verb in ("list", "watch")}
    return ApiFacts(SERVER, answers | (changed or {}), nodes=nodes)


def bad(checks: tuple[Check, ...]) -> list[tuple[Topic, Severity, str]]:
    """What is not well. Whatever is wrong comes with something to do."""
    found = [each for each in checks if each.severity is not None]
    assert all(each.remedy for each in found if each.severity is not Severity.NOTE), found
    return [(each.topic, each.severity, each.text) for each in found if each.severity is not None]


def test_a_server_that_answers_everything_is_well() -> None:
    facts = api()
    assert bad(check_api(facts, CONFIG)) == []
    assert [each.topic for each in check_api(facts, CONFIG)] == [Topic.API, Topic.CLOCK, Topic.NODE]
    assert facts.readable


def test_a_server_that_does_not_answer_is_one_finding() -> None:
    facts = replace(api(nodes=None), tried={key: Tried(0, "cannot connect: refused") for key in api().tried})
    assert bad(check_api(facts, CONFIG)) == [(Topic.API, Severity.ERROR, f"{SERVER}: cannot connect: refused")]
    assert not facts.readable


def test_credentials_that_are_not_accepted_are_one_finding() -> None:
    facts = replace(api(nodes=None), tried=dict.fromkeys(api().tried, tried(401, "Unauthorized")))
    (found,) = bad(check_api(facts, CONFIG))
    assert found == (Topic.API, Severity.ERROR, f"{SERVER} does not accept these credentials")


def test_each_thing_that_is_not_allowed_is_named() -> None:
    facts = api(
        {
            (Kind.SERVICE, "watch"): tried(403, "services is forbidden"),
            (Kind.ENDPOINT_SLICE, "list"): tried(403, "no"),
            (Kind.NODE, "list"): tried(500, "etcd is away"),
        },
        nodes=None,
    )
    assert [text for _, _, text in bad(check_api(facts, CONFIG))] == [
        "this account may not watch services: services is forbidden",
        "this account may not list endpointslices.discovery.k8s.io: no",
        "list nodes: 500 etcd is away",
    ]
    assert not facts.readable


def test_a_server_without_service_cidrs_is_well() -> None:
    facts = api({(Kind.SERVICE_CIDR, verb): tried(404) for verb in ("list", "watch")})
    assert bad(check_api(facts, CONFIG)) == []
    assert facts.readable


def test_a_node_name_that_no_node_has_is_an_error() -> None:
    (found,) = bad(check_api(api(nodes=0), CONFIG))
    assert found[:2] == (Topic.NODE, Severity.ERROR)
    assert "no Node called 'n1'" in found[2]


@pytest.mark.parametrize(
    "skew, severity, words",
    [
        (0, None, ""),
        (9, None, ""),
        (11, Severity.WARNING, "11 s behind"),
        (-60, Severity.WARNING, "60 s ahead of"),
        (301, Severity.ERROR, "301 s behind"),
        (-86400, Severity.ERROR, "86400 s ahead of"),
    ],
)
def test_the_clock_is_compared_with_the_servers(skew: float, severity: Severity | None, words: str) -> None:
    found = [each for each in check_api(api(skew=skew), CONFIG) if each.topic is Topic.CLOCK]
    assert [each.severity for each in found] == [severity]
    assert words in found[0].text


def test_one_slow_answer_does_not_make_the_clock_wrong() -> None:
    slow = Tried(200, "", formatdate(NOW, usegmt=True), NOW + 40)
    assert [
        each.severity for each in check_api(api({(Kind.NODE, "list"): slow}), CONFIG) if each.topic is Topic.CLOCK
    ] == [None]


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Xyz 2026 00:00:00 GMT"])
def test_a_server_that_does_not_tell_its_time_is_not_judged(date: str) -> None:
    assert skew_s(Tried(200, date=date, at=NOW)) is None


def test_a_connection_that_others_can_read_or_fake_is_a_warning() -> None:
    assert [each[1:] for each in bad(check_api(replace(api(), checks_server=False), CONFIG))] == [
        (Severity.WARNING, f"the certificate of {SERVER} is not checked: whoever is in between can be the server")
    ]
    plain = replace(api(), is_encrypted=False)
    assert "without TLS" in bad(check_api(plain, CONFIG))[0][2]
    assert bad(check_api(replace(plain, is_loopback=True), CONFIG)) == []
    own = replace(api(), warnings=(Fault("KUBERNETES_SERVICE_HOST", "is a Service", "give --master"),))
    assert bad(check_api(own, CONFIG)) == [(Topic.API, Severity.WARNING, "KUBERNETES_SERVICE_HOST: is a Service")]


def test_two_proxies_on_one_node_are_an_error_unless_they_share_it() -> None:
    facts = NodeFacts(kube_proxies=(17, 18), holder="hansa run (pid 5)")
    (found,) = bad(check_node(facts, CONFIG))
    assert found[1] is Severity.ERROR
    assert "process 17, 18" in found[2]
    assert bad(check_node(facts, replace(CONFIG, proxy_name="mine"))) == []


def test_without_hansa_nothing_heals() -> None:
    assert bad(check_node(NodeFacts(), CONFIG)) == [
        (Topic.PROXY, Severity.WARNING, "hansa does not run here, so nothing heals")
    ]


def linux(**fields: object) -> list[tuple[Topic, Severity, str]]:
    return bad(check_linux(replace(LinuxFacts(), **fields), CONFIG, runs=True))


def test_a_kernel_that_has_everything_and_holds_it_is_well() -> None:
    assert linux(changes=(), forwarding={IPFamily.IPV4: 1}, connections=(10, 1000), bridged=1) == []
    assert linux(bridged=None) == []


def test_what_the_kernel_lacks_is_named_with_its_option() -> None:
    found = linux(missing=(Missing(needs.NUMGEN, "No such file"),))
    assert found == [
        (Topic.KERNEL, Severity.ERROR, "missing: random numbers (numgen) (CONFIG_NFT_NUMGEN): No such file")
    ]
    assert linux(problem="netlink is away")[0][:2] == (Topic.KERNEL, Severity.ERROR)


def test_rules_of_another_proxy() -> None:
    """They are replaced when hansa starts, if it may; found later, somebody else is at work."""
    table, chain = NftablesRival(IPFamily.IPV4), IptablesRival(IPFamily.IPV4, "nat", legacy=False)
    before = bad(check_linux(LinuxFacts(rivals=(table,)), CONFIG, runs=False))
    assert [each[1] for each in before] == [Severity.NOTE]
    assert linux(rivals=(table,))[0][1] is Severity.ERROR
    kept = replace(CONFIG, windows=WindowsConfig(takeover=False))
    (refused,) = bad(check_linux(LinuxFacts(rivals=(chain,)), kept, runs=False))
    assert refused[1] is Severity.ERROR
    assert "kube-proxy --cleanup" in refused[2]
    beside = replace(CONFIG, proxy_name="mine")
    assert bad(check_linux(LinuxFacts(rivals=(table, chain)), beside, runs=True)) == []


def test_settings_that_are_not_as_they_are_asked_for() -> None:
    liberal = Setting("net/netfilter/nf_conntrack_tcp_be_liberal", 1)
    most = Setting(needs.MAX_ENTRIES, 131072)
    assert linux(settings=((liberal, 1), (most, 262144))) == [], "a larger table is no fault"
    assert [text for _, _, text in linux(settings=((liberal, 0), (most, None)))] == [
        "net/netfilter/nf_conntrack_tcp_be_liberal is 0, the configuration asks for 1",
        "net/netfilter/nf_conntrack_max is not there, the configuration asks for 131072",
    ]


def test_what_keeps_packets_from_services() -> None:
    assert linux(forwarding={IPFamily.IPV4: 0, IPFamily.IPV6: None})[0][:2] == (Topic.SETTINGS, Severity.ERROR)
    assert linux(bridged=0)[0][1] is Severity.NOTE
    assert linux(connections=(799, 1000)) == []
    assert linux(connections=(800, 1000))[0][:2] == (Topic.KERNEL, Severity.WARNING)


def test_rules_that_are_missing_or_left_over() -> None:
    changes = tuple(Change(Verb.CREATE, "element", f"10.0.0.{n}", "missing") for n in range(5))
    stale = Change(Verb.DELETE, "element", "10.0.0.9", "left over")
    found = linux(changes=(*changes, stale))
    assert [(severity, text) for _, severity, text in found] == [
        (
            Severity.ERROR,
            "5 objects are missing or not as they should be: element 10.0.0.0, element 10.0.0.1, element 10.0.0.2, ...",
        ),
        (Severity.WARNING, "1 objects are left over: element 10.0.0.9"),
    ]
    absent = bad(check_linux(LinuxFacts(changes=changes), CONFIG, runs=False))
    assert [severity for _, severity, _ in absent] == [Severity.WARNING], "nobody has started hansa here yet"


def test_hns_that_cannot_do_what_is_asked() -> None:
    dsr = replace(CONFIG, windows=WindowsConfig(enable_dsr=True))
    assert bad(check_windows(WindowsFacts(version=HnsVersion(16, 0), network="vx"), dsr)) == []
    old = bad(check_windows(WindowsFacts(version=HnsVersion(8, 0)), dsr))
    assert [severity for _, severity, _ in old] == [Severity.ERROR]
    without_dsr = bad(check_windows(WindowsFacts(version=HnsVersion(10, 0), network="vx"), dsr))
    assert without_dsr[0][1] is Severity.ERROR
    assert "has no DSR" in without_dsr[0][2]
    lacking = bad(check_windows(WindowsFacts(version=HnsVersion(9, 5), network="vx"), CONFIG))
    assert {severity for _, severity, _ in lacking} == {Severity.NOTE}
    assert bad(check_windows(WindowsFacts("HNS does not answer: x"), CONFIG))[0][1] is Severity.ERROR


def test_the_worst_counts() -> None:
    assert worst([]) is None
    assert worst([None, Severity.NOTE]) is Severity.NOTE
    assert worst([Severity.NOTE, Severity.ERROR, Severity.WARNING, None]) is Severity.ERROR
