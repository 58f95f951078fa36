"""Error records and results of HNS calls: one reading of success and failure for every implementation of HnsApi.

HNS tells a refusal twice: as HRESULT of the call, and as the error record, a JSON text. Evidence: hcn.md 1.1 and 1.5.
"""

from __future__ import annotations

import json

from hansa.hns.api import HnsError, HnsVersion, HResult

S_OK = HResult(0)
E_NOTIMPL = HResult(0x80004001)
E_FAIL = HResult(0x80004005)
E_UNEXPECTED = HResult(0x8000FFFF)
E_HANDLE = HResult(0x80070006)
E_INVALID_DATA = HResult(0x8007000D)
E_INVALIDARG = HResult(0x80070057)
E_PROC_NOT_FOUND = HResult(0x8007007F)  # the DLL of this Windows lacks the function
RPC_SERVER_UNAVAILABLE = HResult(0x800706BA)  # what a client of HNS sees while the service is down
RPC_CALL_FAILED = HResult(0x800706BE)  # the service went away during the call: it may or may not have been done
RPC_CONTEXT_MISMATCH = HResult(0x800706F7)  # a handle of a service that has restarted since

_FAILURE_BIT = 0x80000000


def failed(hresult: int) -> bool:
    """HRESULTs are signed: negative is failure, and S_FALSE and its like are not."""
    return bool(hresult & _FAILURE_BIT)


def raise_if_refused(call: str, hresult: int, record: str) -> None:
    """Raise HnsError if the HRESULT says failure or there is an error record, even next to S_OK.

    hresult may be signed or unsigned; record is "" if none came. The HRESULT wins over the record's code: it is what
    the call answered. Evidence: hcn.md 1.1 (hnslib checkForErrors).
    """
    if not failed(hresult) and not record:
        return
    code, text = read_error_record(record)
    if failed(hresult):
        raise HnsError(call, HResult(hresult & 0xFFFFFFFF), text)
    raise HnsError(call, code if failed(code) else E_FAIL, text)


def read_error_record(record: str) -> tuple[HResult, str]:
    """Code and words of an error record; code is S_OK where it names none. Text that is no record is all words.

    Field names match in any case, unknown fields are ignored. Evidence: hcn.md 1.5, 2.1.
    """
    fields = _object(record)
    if fields is None:
        return S_OK, record
    code = fields.get("errorcode")
    text = fields.get("error")
    number = code if isinstance(code, int) else 0
    return HResult(number & 0xFFFFFFFF), text if isinstance(text, str) else ""


def write_error_record(hresult: HResult, text: str) -> str:
    """The record as HNS writes it: no spaces, the code as an unsigned decimal."""
    record = {"Success": False, "Error": text, "ErrorCode": hresult & 0xFFFFFFFF}
    return json.dumps(record, separators=(",", ":"))


def read_version_response(response: str) -> HnsVersion:
    """The answer to GET /globals/version. Raises HnsError if the service refused or answered something else.

    The call itself may succeed and yet say `"Success":false`. Evidence: hcn.md 1.8.
    """
    call = "HNSCall"
    fields = _object(response)
    if fields is None:
        raise HnsError(call, E_INVALID_DATA, response)
    if fields.get("success") is not True:
        code, text = read_error_record(response)
        raise HnsError(call, code if failed(code) else E_FAIL, text)
    match fields.get("output"):
        case {"Major": int(major), "Minor": int(minor)}:
            return HnsVersion(major, minor)
        case _:
            raise HnsError(call, E_INVALID_DATA, response)


def write_version_response(version: HnsVersion) -> str:
    output = {"Major": version.major, "Minor": version.minor}
    return json.dumps({"Success": True, "Output": output}, separators=(",", ":"))


def _object(text: str) -> dict[str, object] | None:
    """The JSON object with lower-case names, None if the text is no object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {name.lower(): field for name, field in value.items()}
