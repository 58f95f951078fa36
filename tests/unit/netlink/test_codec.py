"""Messages and attributes survive the way there and back, and broken ones are told."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.netlink import codec
from hansa.netlink import nftables as nf

ATTRIBUTES = st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=300)), max_size=8)


@given(ATTRIBUTES)
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(codec.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(codec.attributes(data)) == pairs


@given(st.lists(st.tuples(st.integers(16, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), st.binary())))
def test_messages_come_back(parts: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(codec.message(*part) for part in parts)
    found = [(one.type, one.flags, one.sequence, one.payload) for one in codec.messages(data)]
    assert [one[:3] for one in found] == [one[:3] for one in parts]
    assert all(
        one[3].startswith(part[3]) and len(one[3]) - len(part[3]) < 4 for one, part in zip(found, parts, strict=True)
    )


def test_the_longest_attribute() -> None:
    assert len(codec.attribute(1, bytes(0xFFFF - 4))) == 0x10000
    with pytest.raises(ValueError, match="at most 65535"):
        codec.attribute(1, bytes(0xFFFF - 3))


@pytest.mark.parametrize("data", [b"\x03\0\x01\0", b"\x09\0\x01\0xxxx"])
def test_broken_attributes_are_told(data: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        list(codec.attributes(data))


def test_broken_messages_are_told() -> None:
    with pytest.raises(ValueError, match="datagram has 16"):
        list(codec.messages(struct.pack("=IHHII", 20, 2, 0, 1, 0)))


def test_an_error_carries_the_kernels_words() -> None:
    request = struct.pack("=IHHII", 40, 2561, 5, 7, 0)
    payload = struct.pack("=i", -errno.ENOENT) + request + codec.text(codec.NLMSGERR_ATTR_MSG, "no such set")
    capped = codec.NLM_F_CAPPED | codec.NLM_F_ACK_TLVS
    (reply,) = codec.messages(codec.message(codec.NLMSG_ERROR, capped, 7, payload))
    answer = codec.answer(reply)
    assert answer == codec.Answer(7, errno.ENOENT, "no such set")
    assert str(answer) == "ENOENT: no such set"


def test_an_acknowledgement_is_no_error() -> None:
    (reply,) = codec.messages(codec.message(codec.NLMSG_ERROR, 0, 7, struct.pack("=i", 0) + bytes(16)))
    assert codec.answer(reply).code == 0


@pytest.mark.parametrize(("word", "number"), [(0, 1), (1, 9), (3, 11), (4, 2), (5, 13), (12, 4), (15, 23)])
def test_registers_have_the_kernels_numbers(word: int, number: int) -> None:
    """Evidence: nft --debug=netlink for concatenations in both families."""
    assert nf.register(word) == number


@given(st.dictionaries(st.integers(1, 30), st.binary(min_size=1, max_size=40), max_size=6), st.text("abc", min_size=1))
def test_expressions_come_back(attributes: dict[int, bytes], name: str) -> None:
    sent = nf.Expression(name, attributes)
    (found,) = nf.decode_expressions(sent.encode())
    assert found == sent
    assert found.covers(sent)


def test_an_expression_may_say_more_than_was_sent_but_not_less() -> None:
    sent = nf.lookup("slots", 1, to=1)
    dumped = nf.Expression(sent.name, {**sent.attributes, 5: bytes(4)})
    assert dumped.covers(sent)
    assert not sent.covers(dumped)
    assert not nf.lookup("others", 1, to=1).covers(sent)


@given(
    st.integers(1, 11).map(lambda words: bytes(range(4 * words))),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=60),
)
def test_verdict_elements_come_back(key: bytes, comment: str) -> None:
    data = nf.element(key, nf.verdict_data(-4, "pick-3"), user_data=nf.comment_data(comment))
    payload = nf.set_elements(2, "hansa", "services", [data])
    (found,) = nf.decode_elements(payload)
    assert found == nf.RawElement(key, b"", b"", (-4, "pick-3"), comment)


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)), max_size=20))
def test_plain_elements_come_back(items: list[tuple[bytes, bytes]]) -> None:
    payload = nf.set_elements(2, "hansa", "slots", nf.plain_elements(items, 16, 8))
    assert [(one.key, one.data) for one in nf.decode_elements(payload)] == items


def test_ranges_come_back() -> None:
    payload = nf.set_elements(2, "hansa", "permitted", [nf.range_element(b"a" * 16, b"b" * 16)])
    assert list(nf.decode_elements(payload)) == [nf.RawElement(b"a" * 16, b"b" * 16, b"", None, "")]


def test_a_set_comes_back() -> None:
    shape = nf.SetShape(nf.SET_MAP, 0x730D, 12, 0x1CD, 8, size=100, field_bytes=(4, 1, 2), user_data=b"xyz")
    assert nf.read_set(nf.new_set(2, "hansa", "m", shape=shape, set_id=1)) == ("hansa", "m", shape)


@pytest.mark.parametrize("base", [None, ("nat", 0, -100), ("filter", 0, -300)])
def test_a_chain_comes_back(base: tuple[str, int, int] | None) -> None:
    assert nf.read_chain(nf.chain(2, "hansa", "c", base=base)) == ("hansa", nf.RawChain("c", base))


def test_a_rule_comes_back() -> None:
    expressions = (nf.meta(nf.META_MARK, to=1), nf.verdict(0, ""))
    found = nf.read_rule(nf.rule(2, "hansa", "c", expressions, "why"))
    assert found == ("hansa", "c", nf.RawRule(expressions, "why"))
