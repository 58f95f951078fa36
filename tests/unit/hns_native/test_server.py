"""The emulator's socket: serve() and RemoteHns, each against the other and against raw lines."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hns_double import ScriptedService

from hansa.errors import ConfigError
from hansa.hns.api import ZERO_GUID, Guid, Handle, HnsError, HnsKind
from hansa.hns.client import DEFAULT_QUERY, HnsClient
from hansa.hns.emulator.server import Server, serve
from hansa.hns.emulator.service import Emulator
from hansa.hns.emulator.wire import Answer
from hansa.hns.record import S_OK
from hansa.hns.remote import RemoteHns
from hansa.net import parse_address

NETWORK = json.dumps({"Name": "hansa-nat", "Type": "L2Bridge", "SchemaVersion": {"Major": 2, "Minor": 0}})
UNKNOWN = Guid("6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001")

unix = pytest.mark.skipif(sys.platform == "win32", reason="Python has no unix sockets on Windows")


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def server(emulator: Emulator) -> Iterator[Server]:
    with serve(emulator, "127.0.0.1:0") as running:
        yield running


def lines(server: Server, *sent: bytes) -> list[bytes]:
    """Send raw lines; what comes back until the server has answered all of them or hung up."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"".join(sent))
        connection.shutdown(socket.SHUT_WR)
        return answers.readlines()


def test_a_whole_life_of_an_object_over_the_socket(server: Server, emulator: Emulator) -> None:
    with RemoteHns(server.address) as hns:
        client = HnsClient(hns)
        assert hns.version() == emulator.build.version
        made = json.loads(client.create(HnsKind.NETWORK, NETWORK))
        guid = client.list_ids(HnsKind.NETWORK, name="hansa-nat")[0]
        assert made["ID"].upper() == guid
        assert json.loads(client.read(HnsKind.NETWORK, guid)) == made
        client.delete(HnsKind.NETWORK, guid)
        assert client.list_ids(HnsKind.NETWORK) == ()
    assert emulator.open_handles == 0
    assert emulator.bad_closes == 0


def test_a_refusal_is_the_same_error_as_in_process(server: Server, emulator: Emulator) -> None:
    with RemoteHns(server.address) as hns:
        refused: list[HnsError] = []
        for api in (hns, emulator):
            for guid in (UNKNOWN, Guid("no guid")):
                with pytest.raises(HnsError) as error:
                    api.open(HnsKind.ENDPOINT, guid)
                refused.append(error.value)
    assert [error.hresult for error in refused] == [0x80070490, 0x80070057] * 2
    assert (refused[0].call, refused[0].text) == (refused[2].call, refused[2].text)


def test_a_client_that_dies_leaves_no_handles(server: Server, emulator: Emulator) -> None:
    """hcn.md 1.1: handles are RPC context handles, the service ends them with their process."""
    guid = json.loads(HnsClient(emulator).create(HnsKind.NETWORK, NETWORK))["ID"]
    hns = RemoteHns(server.address)
    kept = [hns.open(HnsKind.NETWORK, guid) for _ in range(3)]
    hns.close(HnsKind.NETWORK, kept[0])
    assert emulator.open_handles == 2
    hns.disconnect()
    server.close()  # waits for the connection's thread
    assert emulator.open_handles == 0
    assert emulator.bad_closes == 0


def test_a_handle_dies_with_its_connection(server: Server, emulator: Emulator) -> None:
    """A number that the next connection may give to something else must not reach it."""
    guid = json.loads(HnsClient(emulator).create(HnsKind.NETWORK, NETWORK))["ID"]
    with RemoteHns(server.address) as hns:
        old = hns.open(HnsKind.NETWORK, guid)
        hns.disconnect()
        for _ in range(2):  # before and after the next connection is made
            with pytest.raises(HnsError) as refused:
                hns.query(HnsKind.NETWORK, old, DEFAULT_QUERY)
            assert refused.value.hresult == 0x800706F7
            hns.close(HnsKind.NETWORK, old)
            hns.close(HnsKind.NETWORK, hns.open(HnsKind.NETWORK, guid))
        with pytest.raises(HnsError) as refused:
            hns.query(HnsKind.NETWORK, Handle(17), DEFAULT_QUERY)
        assert refused.value.hresult == 0x80070006
    server.close()
    assert emulator.bad_closes == 0


def test_several_clients_at_once(server: Server, emulator: Emulator) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with RemoteHns(server.address) as hns:
                client = HnsClient(hns)
                for turn in range(20):
                    document = NETWORK.replace("hansa-nat", f"{name}-{turn}")
                    guid = json.loads(client.create(HnsKind.NETWORK, document))["ID"]
                    assert json.loads(client.read(HnsKind.NETWORK, guid))["Name"] == f"{name}-{turn}"
        except (HnsError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"client{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(emulator.networks()) == 80


def test_the_callers_own_lock_keeps_calls_out(emulator: Emulator) -> None:
    lock = threading.Lock()
    with serve(emulator, "127.0.0.1:0", lock=lock) as server, RemoteHns(server.address, timeout_s=0.05) as hns:
        with lock, pytest.raises(HnsError):
            hns.version()
        assert hns.version() == emulator.build.version


def test_a_client_can_learn_which_machine_hns_runs_on(emulator: Emulator) -> None:
    """On overlay a proxy needs the MAC of the node's own interface, and cannot look at it from elsewhere."""
    machine = {parse_address("192.0.2.21"): "00-15-5D-20-21-01", parse_address("2001:db8::21"): ""}
    with serve(emulator, "127.0.0.1:0", machine=machine) as server, RemoteHns(server.address) as hns:
        assert hns.machine() == machine
        assert emulator.call_count == 0


def test_a_server_that_is_not_told_its_machine_says_so(server: Server) -> None:
    with RemoteHns(server.address) as hns:
        assert hns.machine() is None
    server.close()
    with pytest.raises(HnsError):
        hns.machine()


@pytest.mark.parametrize("said", [None, "", "[]", '{"nowhere": "00-15-5D-20-21-01"}'])
def test_an_answer_about_the_machine_that_makes_no_sense_is_an_error(said: str | None) -> None:
    with ScriptedService(lambda _: Answer(S_OK, out=said)) as service, RemoteHns(service.address) as hns:
        asking = hns.machine
        with pytest.raises(HnsError):
            asking()


# ---- lines that no good client sends ----


def test_what_is_no_call_is_refused_and_the_connection_goes_on(server: Server) -> None:
    version = b'["HNSCall","GET","/globals/version",""]\n'
    answers = [json.loads(line) for line in lines(server, b"GET / HTTP/1.1\n", b"{}\n", version)]
    assert [answer[0] for answer in answers] == [0x80070057, 0x80070057, 0]


@pytest.mark.parametrize(
    ("line", "hresult"),
    [
        (b'["HcnOpenSdnRoute","6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"]', 0x80004001),
        (b'["HcnOpenNamespace","6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001"]', 0x80070490),
        (b'["Quit"]', 0x80004001),
        (b'["HcnOpenNetwork"]', 0x80070057),
        (b'["HcnOpenNetwork",1]', 0x80070057),
        (b'["HcnCloseNetwork","1"]', 0x80070057),
        (b'["HcnCreateEndpoint","6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001","{}"]', 0x80070057),
        (b'["HcnCreateNetwork",1,"6F1C0A10-52D4-4E0B-9B77-0D4C7A10E001","{}"]', 0x80070057),
        (b'["HNSCall","GET"]', 0x80070057),
    ],
)
def test_what_the_emulator_cannot_do_is_refused_with_words(server: Server, line: bytes, hresult: int) -> None:
    ((code, handle, out, record),) = [json.loads(answer) for answer in lines(server, line + b"\n")]
    assert (code, handle, out) == (hresult, None, None)
    assert json.loads(record)["ErrorCode"] == hresult
    assert json.loads(record)["Error"]


def test_an_unknown_path_of_the_old_interface_is_refused_in_its_response(server: Server) -> None:
    """hcn.md 1.8: the call succeeds, the response says Success false."""
    (answer,) = lines(server, b'["HNSCall","GET","/portpools",""]\n')
    hresult, _, out, record = json.loads(answer)
    assert (hresult, record) == (0, None)
    assert json.loads(out)["Success"] is False


def test_half_a_line_is_no_call(server: Server, emulator: Emulator) -> None:
    assert lines(server, b'["HNSCall","GET","/globals/version",""]') == []
    assert emulator.call_count == 0


# ---- a server that is not there, or goes away ----


def test_no_server_is_hns_being_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "127.0.0.1:{1}".format(*listener.getsockname())
    hns = RemoteHns(address)
    for _ in range(2):
        with pytest.raises(HnsError, match=address) as refused:
            hns.enumerate(HnsKind.NETWORK, DEFAULT_QUERY)
        assert refused.value.hresult == 0x800706BA


def test_the_client_finds_the_server_again_after_its_restart(emulator: Emulator) -> None:
    with serve(emulator, "127.0.0.1:0") as server:
        hns = RemoteHns(server.address)
        hns.version()
    with pytest.raises(HnsError) as refused:
        hns.version()
    assert refused.value.hresult in (0x800706BA, 0x800706BE)
    with serve(emulator, server.address), hns:
        assert hns.version() == emulator.build.version


@pytest.mark.parametrize("answer", [None, b"[0,1]\n", b"HTTP/1.1 400 Bad Request\r\n", b'[0,null,"half'])
def test_a_broken_answer_ends_the_connection(answer: bytes | None) -> None:
    """Whether the call was done is unknown: 0x800706BE, which is UNAVAILABLE and never GONE."""
    with ScriptedService(lambda _: answer) as service, RemoteHns(service.address, timeout_s=0.2) as hns:
        with pytest.raises(HnsError) as refused:
            hns.create(HnsKind.NETWORK, ZERO_GUID, NETWORK)
        assert refused.value.hresult == 0x800706BE


def test_a_silent_server_costs_no_more_than_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hns = RemoteHns("127.0.0.1:{1}".format(*listener.getsockname()), timeout_s=0.05)
        started = time.monotonic()
        with pytest.raises(HnsError, match="timed out") as refused:
            hns.version()
        assert refused.value.hresult == 0x800706BE
        assert time.monotonic() - started < 5


def test_the_end_does_not_wait_for_a_server_that_does_not_answer() -> None:
    failures: list[HnsError] = []

    def ask(hns: RemoteHns) -> None:
        for _ in range(2):  # the second call must not connect anew
            try:
                hns.version()
            except HnsError as error:
                failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with RemoteHns("127.0.0.1:{1}".format(*listener.getsockname())) as hns:
            asking = threading.Thread(target=ask, args=(hns,))
            asking.start()
            connection, _ = listener.accept()
            assert connection.recv(1), "the call is under way"
        asking.join(timeout=10)
        assert not asking.is_alive()
        connection.close()
    assert [error.hresult for error in failures] == [0x800706BE, 0x800706BA]


def test_closing_a_server_ends_its_connections_and_may_be_repeated(emulator: Emulator) -> None:
    server = serve(emulator, "127.0.0.1:0")
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    with RemoteHns(server.address) as hns:
        hns.version()
        server.close()
        server.close()
        waiting.join(timeout=10)
        assert not waiting.is_alive()


def test_an_address_in_use_is_an_error(server: Server, emulator: Emulator) -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened: .*(in use|10048)"):
        serve(emulator, server.address)


# ---- unix sockets ----


@unix
def test_a_unix_socket_is_private_and_goes_with_the_server(emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "hns.sock"
    with serve(emulator, f"unix:{path}") as server, RemoteHns(server.address) as hns:
        assert server.address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        assert hns.version() == emulator.build.version
    assert not path.exists()


@unix
def test_the_socket_of_a_dead_server_is_taken_over(emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "hns.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serve(emulator, f"unix:{path}") as server, RemoteHns(server.address) as hns:
        hns.version()
        with pytest.raises(ConfigError, match="cannot be opened: Address already in use"):
            serve(emulator, f"unix:{path}")
        hns.version()


@unix
def test_a_file_in_the_place_of_the_socket_is_left_alone(emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "hns.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="cannot be opened: Address already in use"):
        serve(emulator, f"unix:{path}")
    assert path.read_text() == "mine"


@pytest.mark.skipif(sys.platform != "win32", reason="about Windows")
def test_no_unix_sockets_on_windows(emulator: Emulator) -> None:
    with pytest.raises(ConfigError, match="no unix sockets on Windows"):
        serve(emulator, "unix:hns.sock")
