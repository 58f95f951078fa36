"""NativeHns against the C double: what reaches the DLL, what comes back, and that nothing is left behind."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hns_double import Counter, Double, ScriptedService, compiled, double

from hansa.errors import DataplaneError
from hansa.hns.api import Guid, Handle, HnsError, HnsKind, HnsVersion, HResult
from hansa.hns.emulator.wire import Answer, Request
from hansa.hns.native import NativeHns, Notification, NotificationKind
from hansa.hns.record import write_error_record

GUID = Guid("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001")
QUERY = '{"SchemaVersion":{"Major":2,"Minor":0}}'
TAKEN = HResult(0x803B0013)
TAKEN_TEXT = "The specified port already exists. "
TAKEN_RECORD = write_error_record(TAKEN, TAKEN_TEXT)

off_windows = pytest.mark.skipif(sys.platform == "win32", reason="about systems without a computenetwork.dll")


@pytest.fixture
def dll() -> Iterator[Double]:
    """The double; a test leaves nothing allocated, open or registered, and frees only what it was given."""
    library = double()
    before = library.leaks()
    yield library
    library.connect("")
    assert library.leaks() == before


def script_of(*answers: Answer | bytes | None) -> ScriptedService:
    waiting = list(answers)
    return ScriptedService(lambda _: waiting.pop(0))


def call_each(hns: NativeHns, verb: str, kind: HnsKind) -> object:
    """One call of the named verb; handles are made up: only the script looks at them."""
    match verb:
        case "enumerate":
            return hns.enumerate(kind, QUERY)
        case "open":
            return hns.open(kind, GUID)
        case "query":
            return hns.query(kind, Handle(0), QUERY)
        case "create":
            return hns.create(kind, GUID, "{}", Handle(0) if kind is HnsKind.ENDPOINT else None)
        case "modify":
            return hns.modify(kind, Handle(0), "{}")
        case "delete":
            return hns.delete(kind, GUID)
        case "version":
            return hns.version()
    raise AssertionError(verb)


def test_each_verb_calls_its_function_with_the_inputs_of_the_dll(dll: Double) -> None:
    """hcn.md 1.2: parameters in order; a handle goes back in as it came out, all 64 bits of it."""
    replies = {"Enumerate": Answer(HResult(0), out='["A"]'), "Query": Answer(HResult(0), out='{"ID":"A"}')}
    numbers = iter(range(100, 200))

    def script(request: Request) -> Answer:
        if request.function.startswith(("HcnOpen", "HcnCreate")):
            return Answer(HResult(0), handle=Handle(next(numbers)))
        return next((reply for word, reply in replies.items() if word in request.function), Answer(HResult(0)))

    with ScriptedService(script) as service:
        dll.connect(service.address)
        hns = dll.native()
        network = hns.open(HnsKind.NETWORK, GUID)
        endpoint = hns.create(HnsKind.ENDPOINT, GUID, '{"Name":"a"}', network)
        balancer = hns.create(HnsKind.LOAD_BALANCER, GUID, "{}")
        assert min(network, endpoint, balancer) > 1 << 32, "the double gives handles that 32 bits cannot hold"
        assert hns.enumerate(HnsKind.ENDPOINT, QUERY) == '["A"]'
        assert hns.query(HnsKind.LOAD_BALANCER, balancer, QUERY) == '{"ID":"A"}'
        hns.modify(HnsKind.NETWORK, network, "[]")
        hns.delete(HnsKind.LOAD_BALANCER, GUID)
        for kind, handle in zip(HnsKind, (network, endpoint, balancer), strict=True):
            hns.close(kind, handle)
    assert [(request.function, *request.arguments) for request in service.requests] == [
        ("HcnOpenNetwork", GUID),
        ("HcnCreateEndpoint", 100, GUID, '{"Name":"a"}'),
        ("HcnCreateLoadBalancer", GUID, "{}"),
        ("HcnEnumerateEndpoints", QUERY),
        ("HcnQueryLoadBalancerProperties", 102, QUERY),
        ("HcnModifyNetwork", 100, "[]"),
        ("HcnDeleteLoadBalancer", GUID),
        ("HcnCloseNetwork", 100),
        ("HcnCloseEndpoint", 101),
        ("HcnCloseLoadBalancer", 102),
    ]


VERBS = ("enumerate", "open", "query", "create", "modify", "delete")

# What a refused call may leave in its out parameters. Evidence: hcn.md 1.1 (texts to be freed also on failure, a record
# next to S_OK is failure, no record when HNS is down).
REFUSALS = {
    "with a record": (Answer(TAKEN, record=TAKEN_RECORD), TAKEN, TAKEN_TEXT),
    "without a record": (Answer(HResult(0x800706BA)), HResult(0x800706BA), ""),
    "with a text of its own": (Answer(TAKEN, out="half", record=TAKEN_RECORD), TAKEN, TAKEN_TEXT),
    "S_OK and a record": (Answer(HResult(0), record=TAKEN_RECORD), TAKEN, TAKEN_TEXT),
    "S_OK, a handle, a text and a record": (
        Answer(HResult(0), handle=Handle(7), out="{}", record=TAKEN_RECORD),
        TAKEN,
        TAKEN_TEXT,
    ),
    "S_OK and a record without a code": (Answer(HResult(0), record='{"Error":"no"}'), HResult(0x80004005), "no"),
    "a record that is no JSON": (Answer(TAKEN, record="nein"), TAKEN, "nein"),
}


@pytest.mark.parametrize("kind", HnsKind)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", REFUSALS)
def test_every_refusal_is_raised_and_leaves_nothing_behind(dll: Double, how: str, verb: str, kind: HnsKind) -> None:
    answer, hresult, text = REFUSALS[how]
    with_handle = verb in ("open", "create")
    answer = Answer(answer.hresult, answer.handle if with_handle else None, answer.out, answer.record)
    closes_own = answer.handle is not None
    allocated = dll.count(Counter.TEXTS_ALLOCATED)
    with script_of(answer, *[Answer(HResult(0))] * closes_own) as service:
        dll.connect(service.address)
        with pytest.raises(HnsError) as refused:
            call_each(dll.native(), verb, kind)
    assert (refused.value.hresult, refused.value.text) == (hresult, text)
    assert refused.value.call == service.requests[0].function
    if closes_own:
        assert service.requests[1] == Request(f"HcnClose{kind.value}", (7,))
    takes_text = verb in ("enumerate", "query") and answer.out is not None
    assert dll.count(Counter.TEXTS_ALLOCATED) - allocated == takes_text + (answer.record is not None)


@pytest.mark.parametrize("verb", ["enumerate", "query", "open", "create"])
def test_success_without_a_result_is_a_failure(dll: Double, verb: str) -> None:
    """Nothing may be concluded from a list that did not come."""
    with script_of(Answer(HResult(0))) as service:
        dll.connect(service.address)
        with pytest.raises(HnsError, match="without giving a") as refused:
            call_each(dll.native(), verb, HnsKind.LOAD_BALANCER)
    assert refused.value.hresult == 0x8000FFFF


def test_handles_are_given_back_once_each(dll: Double) -> None:
    """The double counts what is closed twice or was never given out; it tells a use of a closed handle."""
    misused = dll.count(Counter.HANDLES_MISUSED)
    with ScriptedService(lambda _: Answer(HResult(0), handle=Handle(1))) as service:
        dll.connect(service.address)
        hns = dll.native()
        handles = [hns.open(HnsKind.NETWORK, GUID) for _ in range(2000)]
        assert len(set(handles)) == len(handles)
        assert dll.count(Counter.HANDLES_OPEN) >= len(handles)
        for handle in handles:
            hns.close(HnsKind.NETWORK, handle)
        assert dll.count(Counter.HANDLES_MISUSED) == misused
        hns.close(HnsKind.NETWORK, handles[0])
        assert dll.count(Counter.HANDLES_MISUSED) == misused + 1


@pytest.mark.parametrize("none", ["null", "", " null\r\n"])
def test_null_for_a_list_is_the_empty_list(dll: Double, none: str) -> None:
    with script_of(Answer(HResult(0), out=none)) as service:
        dll.connect(service.address)
        assert dll.native().enumerate(HnsKind.NETWORK, QUERY) == "[]"


def test_texts_of_every_length_and_character_pass_both_ways(dll: Double) -> None:
    """Explicit UTF-16: above the first plane, half surrogates, and texts that end on, before and after a page."""
    with ScriptedService(lambda request: Answer(HResult(0), out=str(request.arguments[-1]))) as service:
        dll.connect(service.address)
        hns = dll.native()

        @given(st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=300))
        @settings(max_examples=50, deadline=None)
        def passes(text: str) -> None:
            assert hns.query(HnsKind.NETWORK, Handle(0), text) == _joined(text)

        passes()
        for length in (0, 1, 2046, 2047, 2048, 2049, 4095, 4096, 70_000):
            for unit in ("x", "ü", "Ā", "\U0001f40b"):  # U+0100 has its zero byte first: "xĀ" contains two in a row
                assert hns.query(HnsKind.NETWORK, Handle(0), "x" + unit * length) == "x" + unit * length


def _joined(text: str) -> str:
    """Two half surrogates in a row are one character once they have been UTF-16."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def test_a_text_with_a_nul_is_refused_before_the_dll_sees_half_of_it(dll: Double) -> None:
    calls = dll.count(Counter.CALLS)
    with pytest.raises(HnsError, match="U\\+0000") as refused:
        dll.native().modify(HnsKind.NETWORK, Handle(1), "{}\0{}")
    assert refused.value.hresult == 0x80070057
    assert dll.count(Counter.CALLS) == calls


@given(guid=st.uuids())
@settings(max_examples=50, deadline=None)
def test_guids_are_passed_in_the_layout_of_windows(guid: object) -> None:
    """hcn.md 1.1: 16 bytes, the first three fields little-endian; the double prints them as Windows does."""
    text = Guid(str(guid).upper())
    with script_of(Answer(HResult(0))) as service:
        double().connect(service.address)
        double().native().delete(HnsKind.NETWORK, text)
    assert service.requests == [Request("HcnDeleteNetwork", (text,))]


def test_what_is_no_guid_never_reaches_the_dll(dll: Double) -> None:
    calls = dll.count(Counter.CALLS)
    with pytest.raises(HnsError, match="'everything' is not a GUID") as refused:
        dll.native().delete(HnsKind.NETWORK, Guid("everything"))
    assert refused.value.hresult == 0x80070057
    assert dll.count(Counter.CALLS) == calls


@pytest.mark.parametrize("kind", HnsKind)
def test_only_endpoints_are_created_on_a_network(dll: Double, kind: HnsKind) -> None:
    network = None if kind is HnsKind.ENDPOINT else Handle(1)
    calls = dll.count(Counter.CALLS)
    with pytest.raises(HnsError, match="created on a network") as refused:
        dll.native().create(kind, GUID, "{}", network)
    assert refused.value.hresult == 0x80070057
    assert dll.count(Counter.CALLS) == calls


def test_a_service_that_is_away_is_an_rpc_error_without_words(dll: Double) -> None:
    """hcn.md 1.5: no JSON at all comes back when HNS is down."""
    hns = dll.native()
    for verb in (*VERBS, "version"):
        with pytest.raises(HnsError) as refused:
            call_each(hns, verb, HnsKind.NETWORK)
        assert (refused.value.hresult, refused.value.text) == (0x800706BA, "")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ('{"Success":true,"Output":{"Major":15,"Minor":4}}', HnsVersion(15, 4)),
        ('{"Output":{"Minor":4,"Major":9,"New":1},"Success":true,"Extra":null}', HnsVersion(9, 4)),
        ('{"Success":false,"Error":"nein","ErrorCode":2151350304}', (0x803B0020, "nein")),
        ('{"Success":false,"Error":"nein"}', (0x80004005, "nein")),
        ('{"Success":true,"Output":{"Major":"15"}}', (0x8007000D, '{"Success":true,"Output":{"Major":"15"}}')),
        ("[]", (0x8007000D, "[]")),
        ("", (0x8007000D, "")),
    ],
)
def test_version_comes_from_the_older_dll(dll: Double, response: str, expected: HnsVersion | tuple[int, str]) -> None:
    with script_of(Answer(HResult(0), out=response)) as service:
        dll.connect(service.address)
        hns = dll.native()
        if isinstance(expected, HnsVersion):
            assert hns.version() == expected
        else:
            with pytest.raises(HnsError) as refused:
                hns.version()
            assert (refused.value.call, refused.value.hresult, refused.value.text) == ("HNSCall", *expected)
    assert service.requests == [Request("HNSCall", ("GET", "/globals/version", ""))]


def test_threads_do_not_get_each_others_answers(dll: Double) -> None:
    wrong: list[tuple[str, str]] = []
    with ScriptedService(lambda request: Answer(HResult(0), out=str(request.arguments[-1]))) as service:
        dll.connect(service.address)
        hns = dll.native()

        def ask(number: int) -> None:
            for turn in range(50):
                text = f"{number}.{turn} " * (number + 1)
                if (answer := hns.enumerate(HnsKind.ENDPOINT, text)) != text:
                    wrong.append((text, answer))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_program_that_knows_nothing_of_tests_finds_the_service_by_its_environment(
    dll: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any Windows program under Wine can use the DLLs: HANSA_HNS_ADDRESS says where the emulator listens."""
    with script_of(Answer(HResult(0), out="[]")) as service:
        monkeypatch.setenv("HANSA_HNS_ADDRESS", service.address)
        assert dll.native().enumerate(HnsKind.NETWORK, QUERY) == "[]"


# ---- loading ----


@off_windows
def test_without_a_library_the_error_says_what_to_do() -> None:
    with pytest.raises(DataplaneError, match=r"run on Windows .* emulated HNS"):
        NativeHns()


@off_windows
def test_importing_loads_nothing() -> None:
    program = "import ctypes; ctypes.CDLL = None; import hansa.hns.native"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataplaneError, match=r"cannot load .*none\.dll"):
        NativeHns(tmp_path / "none.dll")


@off_windows
def test_a_library_that_cannot_free_its_texts_is_refused(tmp_path: Path) -> None:
    from ctypes.util import find_library

    mathematics = find_library("m")
    assert mathematics is not None
    with pytest.raises(DataplaneError, match="CoTaskMemFree"):
        NativeHns(mathematics)


@off_windows
def test_a_function_that_an_old_windows_lacks_is_missed_when_it_is_called() -> None:
    """The rest works; the code is one that hansa takes for `unsupported`."""
    library = compiled("WITHOUT_LOAD_BALANCERS")
    hns = NativeHns(library)
    with pytest.raises(HnsError, match="does not export HcnModifyLoadBalancer") as refused:
        hns.modify(HnsKind.LOAD_BALANCER, Handle(1), "{}")
    assert refused.value.hresult == 0x8007007F
    with script_of(Answer(HResult(0), out="[]")) as service:
        other = ctypes.CDLL(str(library))
        other.hns_double_connect(service.address.encode())
        assert hns.enumerate(HnsKind.NETWORK, QUERY) == "[]"


# ---- notifications ----


def test_notifications_arrive_with_all_they_say(dll: Double) -> None:
    received: list[Notification] = []
    data = '{"ID":"6f1c0a10-52d4-4e0b-9b77-0d4c7a10e001","Flags":0,"Data":"größer"}'
    with dll.native() as hns, hns.subscribe(received.append):
        dll.notify(2, 0, data)
        dll.notify(0x41000000, -2143617023, None)
        dll.notify(0x7777, 1, "no JSON")
        dll.notify(9, 0, '{"ID":17}')
    assert received == [
        Notification(NotificationKind.NETWORK_CREATE, HResult(0), GUID, data),
        Notification(NotificationKind.SERVICE_DISCONNECT, HResult(0x803B0001), None, ""),
        Notification(0x7777, HResult(1), None, "no JSON"),
        Notification(NotificationKind.ENDPOINT_ATTACHED, HResult(0), None, '{"ID":17}'),
    ]


def test_subscriptions_end_by_close_and_with_the_service(dll: Double) -> None:
    received: list[str] = []
    with dll.native() as hns:
        first = hns.subscribe(lambda _: received.append("first"))
        hns.subscribe(lambda _: received.append("second"))
        dll.notify(1, 0, None)
        first.close()
        first.close()
        dll.notify(1, 0, None)
    dll.notify(1, 0, None)
    assert received == ["first", "second", "second"]
    assert dll.count(Counter.CALLBACKS) == 0


def test_hns_may_call_a_subscription_that_everyone_has_forgotten(dll: Double) -> None:
    """HNS holds a bare address: the callback behind it must outlive its owner, or the process dies."""
    received: list[Notification] = []

    def subscribe() -> object:
        return dll.native().subscribe(received.append)._handle.value

    handle = subscribe()
    gc.collect()
    dll.notify(1, 0, None)
    assert len(received) == 1
    forget(dll, handle)


def test_a_registration_that_cannot_be_ended_stays_callable(dll: Double) -> None:
    received: list[Notification] = []
    with dll.native() as hns:
        subscription = hns.subscribe(received.append)
        handle = subscription._handle.value
        dll.refuse_callbacks(0x80004001)
    dll.refuse_callbacks(0)
    del subscription, hns
    gc.collect()
    dll.notify(1, 0, None)
    assert len(received) == 1
    forget(dll, handle)


def forget(dll: Double, handle: object) -> None:
    unregister = ctypes.CDLL(str(dll.path or "computenetwork.dll")).HcnUnregisterServiceCallback
    unregister.argtypes = (ctypes.c_void_p,)
    unregister(handle)


def test_a_refused_subscription_is_an_error(dll: Double) -> None:
    dll.refuse_callbacks(0x80070005)
    try:
        with dll.native() as hns, pytest.raises(HnsError, match="HcnRegisterServiceCallback") as refused:
            hns.subscribe(lambda _: None)
    finally:
        dll.refuse_callbacks(0)
    assert refused.value.hresult == 0x80070005


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_in_a_subscriber_is_shown_and_stops_nothing(dll: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    received: list[Notification] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda caught: shown.append(caught.exc_value))

    def fail(_: Notification) -> None:
        raise ValueError("a bug")

    with dll.native() as hns, hns.subscribe(fail), hns.subscribe(received.append):
        dll.notify(1, 0, None)
    assert [str(error) for error in shown] == ["a bug"]
    assert len(received) == 1
