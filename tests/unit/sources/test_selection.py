"""The query for the server and the test on a manifest are the same choice (service-semantics section 1, S1, S4, S5)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.api_server import selector

from hansa.api.objects import Kind
from hansa.sources.selection import Header, is_selected, selection
from hansa.testing import config

laws = settings(max_examples=50, deadline=None, derandomize=True)

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"


def chosen(kind: Kind, item: dict[str, Any], proxy_name: str | None = None) -> bool:
    return is_selected(kind, msgspec.convert(item, Header), config(proxy_name=proxy_name))


@pytest.mark.parametrize(
    ("labels", "proxy_name", "expected"),
    [
        (None, None, True),
        ({}, None, True),
        ({"app": "web"}, None, True),
        ({PROXY_NAME: "other"}, None, False),
        ({PROXY_NAME: ""}, None, False),
        ({PROXY_NAME: None}, None, False),
        ({PROXY_NAME: "hansa"}, "hansa", True),
        ({PROXY_NAME: "other"}, "hansa", False),
        ({}, "hansa", False),
    ],
)
def test_proxy_name(labels: dict[str, str] | None, proxy_name: str | None, expected: bool) -> None:
    item = {"metadata": {"name": "web", "labels": labels}, "spec": {"clusterIP": "10.96.0.10"}}
    assert chosen(Kind.SERVICE, item, proxy_name) is expected


@pytest.mark.parametrize(("address", "expected"), [("None", False), ("", True), ("10.96.0.10", True), (None, True)])
def test_headless_services(address: str | None, expected: bool) -> None:
    """S1; S2 services still arrive and are skipped later."""
    assert chosen(Kind.SERVICE, {"metadata": {"name": "web"}, "spec": {"clusterIP": address}}) is expected


@pytest.mark.parametrize("value", ["", "true"])
def test_slices_of_headless_services(value: str) -> None:
    assert not chosen(Kind.ENDPOINT_SLICE, {"metadata": {"name": "web-a", "labels": {HEADLESS: value}}})
    assert chosen(Kind.ENDPOINT_SLICE, {"metadata": {"name": "web-a", "labels": {PROXY_NAME: "other"}}})


def test_only_this_node() -> None:
    assert chosen(Kind.NODE, {"metadata": {"name": "n1"}})
    assert not chosen(Kind.NODE, {"metadata": {"name": "n2"}})
    assert not chosen(Kind.NODE, {})


LABELS = st.dictionaries(st.sampled_from((PROXY_NAME, HEADLESS, "app")), st.sampled_from(("", "hansa", "true")))


@laws
@given(
    st.sampled_from(Kind),
    LABELS,
    st.sampled_from(("n1", "n2")),
    st.sampled_from(("None", "", "10.96.0.10")),
    st.sampled_from((None, "hansa")),
)
def test_a_server_would_choose_the_same(
    kind: Kind, labels: dict[str, str], name: str, address: str, proxy_name: str | None
) -> None:
    item = {"metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": address}}
    asked = selection(kind, config(proxy_name=proxy_name))
    server_selects = selector({"labelSelector": asked.label_selector, "fieldSelector": asked.field_selector})
    assert chosen(kind, item, proxy_name) is server_selects(item)
