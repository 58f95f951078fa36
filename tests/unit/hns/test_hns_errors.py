"""Codes and classes of windows-proxy 0.4, features of hcn.md 4, quirks."""

from __future__ import annotations

import dataclasses

import pytest

from hansa.hns.api import HnsError, HnsVersion, HResult
from hansa.hns.emulator.builds import BUILDS, SWITCHES, Build, Modify
from hansa.hns.errors import KNOWN_RESULTS, ErrorClass, classify, describe, hresult_of
from hansa.hns.features import Feature, needed, supports
from hansa.hns.quirks import QUIRKS


# Every row of windows-proxy 0.4, bare Win32 numbers included.
@pytest.mark.parametrize(
    "code, expected",
    [
        (0x803B0001, ErrorClass.GONE),
        (0x490, ErrorClass.GONE),
        (0x80070490, ErrorClass.GONE),
        (0x803B0002, ErrorClass.GONE),
        (0x803B0007, ErrorClass.TRANSIENT),
        (0x803B000D, ErrorClass.REJECTED),
        (0x803B0012, ErrorClass.CONFLICT),
        (0xB7, ErrorClass.CONFLICT),
        (0x800700B7, ErrorClass.CONFLICT),
        (0x1392, ErrorClass.CONFLICT),
        (0x80071392, ErrorClass.CONFLICT),
        (0x803B0013, ErrorClass.CONFLICT),
        (0x803B001E, ErrorClass.REJECTED),
        (0x803B002F, ErrorClass.REJECTED),
        (0x803B0020, ErrorClass.UNAVAILABLE),
        (1722, ErrorClass.UNAVAILABLE),
        (0x800706BA, ErrorClass.UNAVAILABLE),
        (1753, ErrorClass.UNAVAILABLE),
        (1062, ErrorClass.UNAVAILABLE),
        (1727, ErrorClass.UNAVAILABLE),  # a code of the RPC block without a row of its own
        (126, ErrorClass.UNAVAILABLE),
        (0x803B002C, ErrorClass.BUSY),
        (0x80004001, ErrorClass.UNSUPPORTED),
        (0x0E, ErrorClass.EXHAUSTED),
        (0x8007000E, ErrorClass.EXHAUSTED),
        (0x57, ErrorClass.REJECTED),
        (0x80070057, ErrorClass.REJECTED),
        (0x803BFFFF, ErrorClass.TRANSIENT),  # nobody has seen it: nothing may be concluded
        (0x80004005, ErrorClass.TRANSIENT),
    ],
)
def test_the_class_of_a_code(code: int, expected: ErrorClass) -> None:
    assert classify(HnsError("HcnX", HResult(code))) is expected
    assert classify(HnsError("HcnX", HResult(code - 2**32 if code >= 2**31 else code))) is expected


def test_every_code_of_the_table_is_known() -> None:
    """hcn.md 1.6: 803B0001 to 803B0037 without a gap, the generic ones, vmcompute's."""
    assert {HResult(0x803B0000 | low) for low in range(0x01, 0x38)} <= KNOWN_RESULTS.keys()
    generic = (0x80004001, 0x80070005, 0x8007000D, 0x80070057, 0x80070490, 0x800700B7, 0x80070022)
    assert {HResult(code) for code in generic} <= KNOWN_RESULTS.keys()
    assert {HResult(code) for code in (0x80370100, 0x8037010D, 0x8037011C, 0x8037011F)} <= KNOWN_RESULTS.keys()
    assert all(row.name and row.meaning and row.evidence for row in KNOWN_RESULTS.values())


def test_codes_are_described() -> None:
    assert describe(0x803B0013) == "0x803B0013 HCN_E_PORT_ALREADY_EXISTS: frontend, port or reservation taken"
    assert describe(0x490) == "0x80070490 ERROR_NOT_FOUND: element not found"
    assert describe(0x803BFFFF) == "0x803BFFFF"
    assert hresult_of(0) == 0


@pytest.mark.parametrize(
    "feature, having, lacking",
    [
        (Feature.API_V2, [(9, 2), (10, 0), (16, 0)], [(9, 1), (7, 2)]),
        (Feature.DSR, [(9, 3), (9, 99), (10, 2), (11, 0), (13, 3)], [(9, 2), (10, 0), (10, 1)]),
        (Feature.SLASH32_ENDPOINT_PREFIXES, [(9, 3), (10, 4)], [(10, 3)]),
        (Feature.IPV6_DUAL_STACK, [(11, 10), (12, 0)], [(11, 9), (9, 5)]),
        (Feature.SESSION_AFFINITY, [(12, 0), (15, 4)], [(11, 99)]),
        (Feature.L4_PROXY, [(9, 5), (10, 5), (11, 11), (12, 1), (13, 1)], [(10, 4), (11, 10), (12, 0), (13, 0)]),
        (Feature.MODIFY_LOAD_BALANCER, [(15, 5), (15, 9), (16, 0), (17, 3)], [(15, 4), (14, 9), (13, 3)]),
    ],
)
def test_features_have_holes(feature: Feature, having: list[tuple[int, int]], lacking: list[tuple[int, int]]) -> None:
    assert all(supports(HnsVersion(*version), feature) for version in having)
    assert not any(supports(HnsVersion(*version), feature) for version in lacking)


def test_what_is_needed_is_said_in_words() -> None:
    assert needed(Feature.DSR) == "9.3 to 9.x, or 10.2 or later"
    assert str(Feature.MODIFY_LOAD_BALANCER) == "ModifyLoadbalancer"


def test_features_are_distinct() -> None:
    """Equal values of an Enum would be one member."""
    assert len({feature.value.name for feature in Feature}) == len(Feature) == 19


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_builds_agree_with_the_feature_table(build: Build) -> None:
    assert (build.modify is Modify.WORKS) == supports(build.version, Feature.MODIFY_LOAD_BALANCER)
    assert build.evidence


def test_every_switch_has_its_evidence() -> None:
    switches = {field.name for field in dataclasses.fields(Build)} - {"name", "windows", "version", "grade", "evidence"}
    assert switches == SWITCHES.keys()


def test_quirks_name_real_builds_and_real_switches() -> None:
    switches = {field.name for field in dataclasses.fields(Build)}
    assert len({quirk.key for quirk in QUIRKS}) == len(QUIRKS)
    for quirk in QUIRKS:
        assert set(quirk.builds) <= BUILDS.keys()
        assert quirk.evidence
        where, _, what = quirk.shown_by.partition(".")
        assert where != "Build" or what in switches


def test_a_build_lists_its_quirks() -> None:
    keys = {quirk.key for quirk in BUILDS["ws2025"].quirks}
    assert {"modify-does-nothing", "deny-unmatched", "degraded-object"} <= keys
    assert "wildcard-listener" not in keys
