"""What HNS's codes mean and what hansa does about each: one table, and `classify()`.

Texts are in the host's display language, so every decision is by code alone (hcn.md 1.5).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from hansa.hns.api import HnsError, HResult


class ErrorClass(enum.Enum):
    """What the caller does next; the reactions are in windows-proxy H.6."""

    GONE = "gone"  # the object is not there: observe again, plan again. Believed only from a healthy HNS
    TRANSIENT = "transient"  # try again a little later
    REJECTED = "rejected"  # the document is wrong: no retry until it or the host changes
    CONFLICT = "conflict"  # something else holds the place: look at it, adopt or replace
    UNAVAILABLE = "unavailable"  # nobody answers: nothing may be concluded about any object
    BUSY = "busy"  # still referenced: retry after the referring object is done
    UNSUPPORTED = "unsupported"  # this build cannot: remember, use another way
    EXHAUSTED = "exhausted"  # a resource of the host is used up: long backoff, alarm


class KnownResult(NamedTuple):
    """One row: HNS's name and meaning for a code, hansa's class, and where the class comes from."""

    name: str
    meaning: str
    error_class: ErrorClass
    evidence: str


def hresult_of(code: int) -> HResult:
    """The HRESULT form of a code: bare Win32 numbers, as some callers report them, get facility 7."""
    code &= 0xFFFF_FFFF
    return HResult(code if code >= 0x1_0000 or code == 0 else 0x8007_0000 | code)


_FIELD = "windows-proxy 0.4: seen in the field"
_MEANING = "inferred from the code's meaning (hcn.md 1.6)"

GONE, TRANSIENT, REJECTED, CONFLICT, UNAVAILABLE, BUSY, UNSUPPORTED, EXHAUSTED = ErrorClass

_HNS_ROWS: tuple[tuple[int, str, str, ErrorClass, str], ...] = (
    (0x803B0001, "HCN_E_NETWORK_NOT_FOUND", "no such network", GONE, _FIELD),
    (0x803B0002, "HCN_E_ENDPOINT_NOT_FOUND", "no such endpoint", GONE, _FIELD),
    (0x803B0003, "HCN_E_LAYER_NOT_FOUND", "the network's lower layer is missing", TRANSIENT, _MEANING),
    (0x803B0004, "HCN_E_SWITCH_NOT_FOUND", "virtual switch missing", TRANSIENT, _MEANING),
    (0x803B0005, "HCN_E_SUBNET_NOT_FOUND", "no subnet for this endpoint", REJECTED, _MEANING),
    (0x803B0006, "HCN_E_ADAPTER_NOT_FOUND", "physical adapter missing", TRANSIENT, _MEANING),
    (0x803B0007, "HCN_E_PORT_NOT_FOUND", "switch port missing", TRANSIENT, _FIELD),
    (0x803B0008, "HCN_E_POLICY_NOT_FOUND", "policy missing", GONE, _MEANING),
    (0x803B0009, "HCN_E_VFP_PORTSETTING_NOT_FOUND", "VFP not set on the port", TRANSIENT, _MEANING),
    (0x803B000A, "HCN_E_INVALID_NETWORK", "network document bad", REJECTED, _MEANING),
    (0x803B000B, "HCN_E_INVALID_NETWORK_TYPE", "unknown network type", REJECTED, _MEANING),
    (0x803B000C, "HCN_E_INVALID_ENDPOINT", "endpoint document bad", REJECTED, _MEANING),
    (0x803B000D, "HCN_E_INVALID_POLICY", "policy document bad or a parameter missing", REJECTED, _FIELD),
    (0x803B000E, "HCN_E_INVALID_POLICY_TYPE", "unknown policy type", REJECTED, _MEANING),
    (
        0x803B000F,
        "HCN_E_INVALID_REMOTE_ENDPOINT_OPERATION",
        "not allowed on a remote endpoint",
        REJECTED,
        _MEANING,
    ),
    (0x803B0010, "HCN_E_NETWORK_ALREADY_EXISTS", "network name taken", CONFLICT, _MEANING),
    (0x803B0011, "HCN_E_LAYER_ALREADY_EXISTS", "layer exists already", CONFLICT, _MEANING),
    (0x803B0012, "HCN_E_POLICY_ALREADY_EXISTS", "policy exists already", CONFLICT, _FIELD),
    (0x803B0013, "HCN_E_PORT_ALREADY_EXISTS", "frontend, port or reservation taken", CONFLICT, _FIELD),
    (0x803B0014, "HCN_E_ENDPOINT_ALREADY_ATTACHED", "endpoint attached already", CONFLICT, _MEANING),
    (0x803B0015, "HCN_E_REQUEST_UNSUPPORTED", "request not supported", UNSUPPORTED, _MEANING),
    (0x803B0016, "HCN_E_MAPPING_NOT_SUPPORTED", "no port mapping on this network type", UNSUPPORTED, _MEANING),
    (0x803B0017, "HCN_E_DEGRADED_OPERATION", "object is degraded", TRANSIENT, _MEANING),
    (0x803B0018, "HCN_E_SHARED_SWITCH_MODIFICATION", "switch has other networks", BUSY, _MEANING),
    (0x803B0019, "HCN_E_GUID_CONVERSION_FAILURE", "GUID cannot be read", REJECTED, _MEANING),
    (0x803B001A, "HCN_E_REGKEY_FAILURE", "registry key cannot be used", TRANSIENT, _MEANING),
    (0x803B001B, "HCN_E_INVALID_JSON", "document does not parse", REJECTED, _MEANING),
    (0x803B001C, "HCN_E_INVALID_JSON_REFERENCE", "bad reference in the document", REJECTED, _MEANING),
    (0x803B001D, "HCN_E_ENDPOINT_SHARING_DISABLED", "endpoint cannot be shared", REJECTED, _MEANING),
    (0x803B001E, "HCN_E_INVALID_IP", "address malformed or outside all subnets", REJECTED, _FIELD),
    (0x803B001F, "HCN_E_SWITCH_EXTENSION_NOT_FOUND", "extension not on the switch", TRANSIENT, _MEANING),
    (0x803B0020, "HCN_E_MANAGER_STOPPED", "service is stopping", UNAVAILABLE, _FIELD),
    (0x803B0021, "GCN_E_MODULE_NOT_FOUND", "guest module missing", UNSUPPORTED, _MEANING),
    (0x803B0022, "GCN_E_NO_REQUEST_HANDLERS", "nobody handles the request", UNSUPPORTED, _MEANING),
    (0x803B0023, "GCN_E_REQUEST_UNSUPPORTED", "guest request not supported", UNSUPPORTED, _MEANING),
    (0x803B0024, "GCN_E_RUNTIMEKEYS_FAILED", "guest runtime keys failed", TRANSIENT, _MEANING),
    (0x803B0025, "GCN_E_NETADAPTER_TIMEOUT", "adapter did not appear", TRANSIENT, _MEANING),
    (0x803B0026, "GCN_E_NETADAPTER_NOT_FOUND", "guest adapter missing", TRANSIENT, _MEANING),
    (0x803B0027, "GCN_E_NETCOMPARTMENT_NOT_FOUND", "compartment missing", GONE, _MEANING),
    (0x803B0028, "GCN_E_NETINTERFACE_NOT_FOUND", "interface missing", TRANSIENT, _MEANING),
    (0x803B0029, "GCN_E_DEFAULTNAMESPACE_EXISTS", "default namespace exists already", CONFLICT, _MEANING),
    (0x803B002A, "HCN_E_ICS_DISABLED", "SharedAccess service is off", REJECTED, _MEANING),
    (
        0x803B002B,
        "HCN_E_ENDPOINT_NAMESPACE_ALREADY_EXISTS",
        "endpoint is in a namespace already",
        CONFLICT,
        _MEANING,
    ),
    (0x803B002C, "HCN_E_ENTITY_HAS_REFERENCES", "still referenced, not removed", BUSY, _FIELD),
    (0x803B002D, "HCN_E_INVALID_INTERNAL_PORT", "internal port missing or 0", REJECTED, _MEANING),
    (0x803B002E, "HCN_E_NAMESPACE_ATTACH_FAILED", "attaching to the namespace failed", TRANSIENT, _MEANING),
    (0x803B002F, "HCN_E_ADDR_INVALID_OR_RESERVED", "address invalid or reserved", REJECTED, _FIELD),
    (0x803B0030, "HCN_E_INVALID_PREFIX", "prefix invalid", REJECTED, _MEANING),
    (
        0x803B0031,
        "HCN_E_OBJECT_USED_AFTER_UNLOAD",
        "object torn down while its handle was open",
        TRANSIENT,
        "inferred: the next open tells whether the object is gone or HNS was restarted (hcn.md 1.3)",
    ),
    (0x803B0032, "HCN_E_INVALID_SUBNET", "subnet invalid", REJECTED, _MEANING),
    (0x803B0033, "HCN_E_INVALID_IP_SUBNET", "IP subnet invalid", REJECTED, _MEANING),
    (0x803B0034, "HCN_E_ENDPOINT_NOT_ATTACHED", "endpoint not attached", TRANSIENT, _MEANING),
    (0x803B0035, "HCN_E_ENDPOINT_NOT_LOCAL", "endpoint not on this host", REJECTED, _MEANING),
    (
        0x803B0036,
        "HCN_E_INTERFACEPARAMETERS_ALREADY_APPLIED",
        "only one such policy is possible",
        CONFLICT,
        _MEANING,
    ),
    (0x803B0037, "HCN_E_VFP_NOT_ALLOWED", "VFP not available", UNSUPPORTED, _MEANING),
)

_GENERIC_ROWS: tuple[tuple[int, str, str, ErrorClass, str], ...] = (
    (0x80004001, "E_NOTIMPL", "not implemented on this build", UNSUPPORTED, _FIELD),
    (0x80070002, "ERROR_FILE_NOT_FOUND", "the RPC endpoint or DLL is missing", UNAVAILABLE, _MEANING),
    (0x80070005, "ERROR_ACCESS_DENIED", "hansa is not elevated", REJECTED, _MEANING),
    (0x80070006, "ERROR_INVALID_HANDLE", "handle died, e.g. with a restart of HNS", TRANSIENT, _MEANING),
    (0x8007000D, "ERROR_INVALID_DATA", "invalid data", REJECTED, _MEANING),
    (0x8007000E, "ERROR_OUTOFMEMORY", "out of memory, or no block of ports is left", EXHAUSTED, _FIELD),
    (0x80070022, "ERROR_WRONG_DISK", "object from before an update of the system", REJECTED, "hcn.md 5.10 B9"),
    (0x80070057, "ERROR_INVALID_PARAMETER", "malformed document, or too many destinations", REJECTED, _FIELD),
    (0x8007007E, "ERROR_MOD_NOT_FOUND", "DLL missing", UNAVAILABLE, _FIELD),
    (0x8007007F, "ERROR_PROC_NOT_FOUND", "function missing in the DLL", UNSUPPORTED, _MEANING),
    (0x800700B7, "ERROR_ALREADY_EXISTS", "object exists already", CONFLICT, _FIELD),
    (0x80070426, "ERROR_SERVICE_NOT_ACTIVE", "the HNS service is not running", UNAVAILABLE, _FIELD),
    (0x80070490, "ERROR_NOT_FOUND", "element not found", GONE, _FIELD),
    (0x800706BA, "RPC_S_SERVER_UNAVAILABLE", "HNS does not answer", UNAVAILABLE, _FIELD),
    (0x800706BE, "RPC_S_CALL_FAILED", "HNS died during the call", UNAVAILABLE, _FIELD),
    (0x800706D9, "EPT_S_NOT_REGISTERED", "HNS has not registered its endpoint", UNAVAILABLE, _FIELD),
    (0x80071392, "ERROR_OBJECT_ALREADY_EXISTS", "an endpoint with this address exists already", CONFLICT, _FIELD),
)

_VMCOMPUTE = "compute systems only: HNS calls are not known to return it (hcn.md 1.6)"
_VMCOMPUTE_NAMES: tuple[tuple[int, str], ...] = (
    (0x100, "TERMINATED_DURING_START"),
    (0x101, "IMAGE_MISMATCH"),
    (0x102, "HYPERV_NOT_INSTALLED"),
    (0x105, "INVALID_STATE"),
    (0x106, "UNEXPECTED_EXIT"),
    (0x107, "TERMINATED"),
    (0x108, "CONNECT_FAILED"),
    (0x109, "CONNECTION_TIMEOUT"),
    (0x10A, "CONNECTION_CLOSED"),
    (0x10B, "UNKNOWN_MESSAGE"),
    (0x10C, "UNSUPPORTED_PROTOCOL_VERSION"),
    (0x10D, "INVALID_JSON"),
    (0x10E, "SYSTEM_NOT_FOUND"),
    (0x10F, "SYSTEM_ALREADY_EXISTS"),
    (0x110, "SYSTEM_ALREADY_STOPPED"),
    (0x111, "PROTOCOL_ERROR"),
    (0x112, "INVALID_LAYER"),
    (0x113, "WINDOWS_INSIDER_REQUIRED"),
    (0x114, "SERVICE_NOT_AVAILABLE"),
    (0x115, "OPERATION_NOT_STARTED"),
    (0x116, "OPERATION_ALREADY_STARTED"),
    (0x117, "OPERATION_PENDING"),
    (0x118, "OPERATION_TIMEOUT"),
    (0x119, "OPERATION_SYSTEM_CALLBACK_ALREADY_SET"),
    (0x11A, "OPERATION_RESULT_ALLOCATION_FAILED"),
    (0x11B, "ACCESS_DENIED"),
    (0x11C, "GUEST_CRITICAL_ERROR"),
    (0x11F, "PROCESS_ALREADY_STOPPED"),
)

KNOWN_RESULTS: dict[HResult, KnownResult] = {
    HResult(code): KnownResult(name, meaning, error_class, evidence)
    for code, name, meaning, error_class, evidence in (*_HNS_ROWS, *_GENERIC_ROWS)
} | {
    HResult(0x8037_0000 | low): KnownResult(f"HCS_E_{name}", name.lower().replace("_", " "), TRANSIENT, _VMCOMPUTE)
    for low, name in _VMCOMPUTE_NAMES
}

# The block of Win32 codes that RPC uses, from RPC_S_INVALID_STRING_BINDING (1700) to RPC_X_BAD_STUB_DATA (1783):
# whichever it is, HNS did not answer.
_FIRST_RPC_CODE, _LAST_RPC_CODE = 0x8007_06A4, 0x8007_06F7


def classify(error: HnsError) -> ErrorClass:
    """hansa's class for a refusal. A code that nobody has seen is TRANSIENT: retried, with nothing concluded from it.

    Evidence: windows-proxy 0.4; rows of KNOWN_RESULTS.
    """
    code = hresult_of(error.hresult)
    if (known := KNOWN_RESULTS.get(code)) is not None:
        return known.error_class
    if _FIRST_RPC_CODE <= code <= _LAST_RPC_CODE:
        return ErrorClass.UNAVAILABLE
    return ErrorClass.TRANSIENT


def describe(code: int) -> str:
    """`0x803B0013 HCN_E_PORT_ALREADY_EXISTS: frontend, port or reservation taken`."""
    hresult = hresult_of(code)
    known = KNOWN_RESULTS.get(hresult)
    return f"0x{hresult:08X} {known.name}: {known.meaning}" if known else f"0x{hresult:08X}"
