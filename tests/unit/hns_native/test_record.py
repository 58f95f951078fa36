"""Success and failure of HNS calls, as every implementation of HnsApi reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.hns.api import HnsError, HnsVersion, HResult
from hansa.hns.record import (
    raise_if_refused,
    read_error_record,
    read_version_response,
    write_error_record,
    write_version_response,
)


@given(hresult=st.integers(0, 2**32 - 1), text=st.text())
@settings(max_examples=50)
def test_a_record_comes_back_as_it_was_written(hresult: int, text: str) -> None:
    assert read_error_record(write_error_record(HResult(hresult), text)) == (hresult, text)


def test_a_record_is_written_as_hns_writes_it() -> None:
    """hcn.md 1.5: ErrorCode is the HRESULT as an unsigned decimal, the text ends in a blank."""
    assert write_error_record(HResult(0x803B0013), "The specified port already exists. ") == (
        '{"Success":false,"Error":"The specified port already exists. ","ErrorCode":2151350291}'
    )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ('{"success":false,"ERROR":"no","errorCode":1}', (1, "no")),
        ('{"Error":"no","ErrorCode":-2143617005,"New":[1]}', (0x803B0013, "no")),
        ('{"Error":["no"],"ErrorCode":"2151350291"}', (0, "")),
        ("{}", (0, "")),
        ("[1]", (0, "[1]")),
        ("Der Parameter ist falsch.", (0, "Der Parameter ist falsch.")),
        ("", (0, "")),
    ],
)
def test_records_are_read_whatever_they_look_like(record: str, expected: tuple[int, str]) -> None:
    assert read_error_record(record) == expected


@pytest.mark.parametrize("hresult", [0, 1])
def test_success_is_every_hresult_that_is_not_negative(hresult: int) -> None:
    raise_if_refused("HcnOpenNetwork", hresult, "")


@pytest.mark.parametrize(
    ("hresult", "record", "code"),
    [
        (-2147023728, "", 0x80070490),
        (0x80070490, "", 0x80070490),
        (0x80070490, '{"ErrorCode":2151350291}', 0x80070490),
        (0, '{"ErrorCode":2151350291}', 0x803B0013),
        (0, '{"ErrorCode":5}', 0x80004005),
        (1, "?", 0x80004005),
    ],
)
def test_failure_is_a_negative_hresult_or_any_record(hresult: int, record: str, code: int) -> None:
    """hcn.md 1.1: a non-empty record is failure even when the call answered S_OK."""
    with pytest.raises(HnsError) as refused:
        raise_if_refused("HcnOpenNetwork", hresult, record)
    assert (refused.value.call, refused.value.hresult) == ("HcnOpenNetwork", code)


@given(major=st.integers(0, 99), minor=st.integers(0, 99))
@settings(max_examples=50)
def test_a_version_comes_back_as_it_was_written(major: int, minor: int) -> None:
    version = HnsVersion(major, minor)
    assert read_version_response(write_version_response(version)) == version
