"""The lines of the emulator's socket, and the addresses it may have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.hns.api import Handle, HResult
from hansa.hns.emulator.wire import (
    Answer,
    MalformedLine,
    Request,
    TcpAddress,
    UnixAddress,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    parse_server_address,
)

TEXT = st.text(st.characters(exclude_categories=()))
NUMBER = st.integers(0, 2**64 - 1)


@given(function=TEXT, arguments=st.lists(NUMBER | TEXT))
@settings(max_examples=50)
def test_a_request_comes_back_from_its_line(function: str, arguments: list[int | str]) -> None:
    request = Request(function, tuple(arguments))
    line = encode_request(request)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert _same_text(decode_request(line)) == _same_text(request)


@given(hresult=st.integers(0, 2**32 - 1), handle=st.none() | NUMBER, out=st.none() | TEXT, record=st.none() | TEXT)
@settings(max_examples=50)
def test_an_answer_comes_back_from_its_line(
    hresult: int, handle: int | None, out: str | None, record: str | None
) -> None:
    answer = Answer(HResult(hresult), None if handle is None else Handle(handle), out, record)
    line = encode_answer(answer)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert _same_text(decode_answer(line)) == _same_text(answer)


def _same_text(value: Request | Answer) -> list[object]:
    """All fields; two half surrogates in a row are the one character that they are in UTF-16."""
    fields = [value.function, *value.arguments] if isinstance(value, Request) else [value.hresult, value.handle]
    fields += [] if isinstance(value, Request) else [value.out, value.record]
    return [
        field.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if isinstance(field, str)
        else field
        for field in fields
    ]


def test_the_form_of_the_lines() -> None:
    """Clients in other languages are written from these."""
    assert encode_request(Request("HcnModifyNetwork", (17, '{"a":"ü"}'))) == (
        b'["HcnModifyNetwork",17,"{\\"a\\":\\"\\u00fc\\"}"]\n'
    )
    assert encode_answer(Answer(HResult(0x80070490), record="no")) == b'[2147943568,null,null,"no"]\n'
    assert encode_answer(Answer(HResult(0), Handle(17))) == b"[0,17,null,null]\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"{}",
        b"[]",
        b"[1]",
        b'["f",null]',
        b'["f",true]',
        b'["f",1.5]',
        b'["f",[]]',
        b"\xff",
    ],
)
def test_what_is_no_request_is_told_from_one(line: bytes) -> None:
    with pytest.raises(MalformedLine):
        decode_request(line)


@pytest.mark.parametrize(
    "line", [b"", b"[0]", b"[0,1,null]", b'["0",1,null,null]', b'[0,"1",null,null]', b"[0,1,2,null]", b"[0,1,null,2]"]
)
def test_what_is_no_answer_is_told_from_one(line: bytes) -> None:
    with pytest.raises(MalformedLine):
        decode_answer(line)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7463", TcpAddress("127.0.0.1", 7463)),
        ("127.9.9.9:0", TcpAddress("127.9.9.9", 0)),
        ("[::1]:7463", TcpAddress("::1", 7463)),
        ("unix:/run/hansa/hns.sock", UnixAddress("/run/hansa/hns.sock")),
        ("unix:hns.sock", UnixAddress("hns.sock")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_server_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "7463", ":7463", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "unix:", "1.1.1.1:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address \(write 127"):
        parse_server_address(text)


@pytest.mark.parametrize("text", ["0.0.0.0:7463", "[::]:7463", "192.0.2.1:7463"])
def test_the_emulator_is_not_for_other_machines(text: str) -> None:
    with pytest.raises(ConfigError, match="other machines"):
        parse_server_address(text)
