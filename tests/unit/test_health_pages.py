"""/flagz, /statusz and /healthz of the metrics port. Evidence: operations.md 10.2."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.health_answers import Moment
from hansa.health_pages import PATHS, Asked, Shown, flagz, negotiate, process_healthz, statusz

laws = settings(max_examples=50, deadline=None, derandomize=True)
SHOWN = Shown("kube-proxy", {"v": "2", "bind-address": "0.0.0.0", "cleanup": "false"})
JSON_STATUSZ = "application/json;g=config.k8s.io;v=v1beta1;as=Statusz"
JSON_FLAGZ = "application/json;g=config.k8s.io;v=v1beta1;as=Flagz"
STARTED = 1_767_323_045.9  # 2026-01-02 03:04:05


def status(accept: str, *, up_s: float = 3725.0) -> tuple[int, str, dict[str, str]]:
    answer = statusz(SHOWN, accept, Moment(0.0, STARTED + up_s), started_at=STARTED, python="3.12.4")
    return answer.code, answer.body, dict(answer.headers)


def test_flagz_as_text_is_a_blank_line_a_title_a_warning_and_sorted_flags() -> None:
    answer = flagz(SHOWN, "")
    first, title, warning, *rest = answer.body.split("\n")
    assert (first, title) == ("", "kube-proxy flagz")
    assert warning.startswith("Warning: This endpoint is not meant to be machine parseable")
    assert rest == ["", "bind-address=0.0.0.0", "cleanup=false", "v=2", ""]
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_statusz_as_text() -> None:
    code, body, headers = status("*/*")
    assert (code, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert body.startswith("\nkube-proxy statusz\nWarning: ")
    assert body.split("\n\n", 1)[1].splitlines() == [
        "Started: Fri Jan  2 03:04:05 UTC 2026",
        "Up: 1 hr 02 min 05 sec",
        "Go version: python3.12.4",
        "Binary version: 1.36",
        "Emulation version: 1.36",
        f"Paths: {' '.join(PATHS)}",
    ]


def test_structured_forms() -> None:
    code, body, headers = status(JSON_STATUSZ)
    assert code == 200
    assert headers == {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}
    assert json.loads(body) == {
        "kind": "Statusz",
        "apiVersion": "config.k8s.io/v1beta1",
        "metadata": {"name": "kube-proxy"},
        "startTime": "2026-01-02T03:04:05Z",
        "uptimeSeconds": 3725,
        "goVersion": "python3.12.4",
        "binaryVersion": "1.36",
        "emulationVersion": "1.36",
        "paths": ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"],
    }
    found = json.loads(flagz(SHOWN, JSON_FLAGZ).body)
    assert (found["kind"], found["flags"]) == ("Flagz", {"bind-address": "0.0.0.0", "cleanup": "false", "v": "2"})
    answer = flagz(SHOWN, JSON_FLAGZ.replace("json", "yaml"))
    assert answer.headers["Content-Type"] == "application/yaml"
    assert yaml.safe_load(answer.body) == found


def test_the_older_version_is_given_with_a_warning() -> None:
    answer = flagz(SHOWN, JSON_FLAGZ.replace("v1beta1", "v1alpha1"))
    assert json.loads(answer.body)["apiVersion"] == "config.k8s.io/v1alpha1"
    assert answer.headers["Warning"].startswith("299 - ")
    assert "Warning" not in flagz(SHOWN, JSON_FLAGZ).headers


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "application/yaml",
        "text/html",
        JSON_FLAGZ,  # another document
        JSON_STATUSZ.replace("v1beta1", "v2"),
        JSON_STATUSZ.replace("config.k8s.io", "apps"),
        "application/vnd.kubernetes.protobuf",
    ],
)
def test_what_there_is_not_is_answered_with_406_and_a_status(accept: str) -> None:
    code, body, headers = status(accept)
    assert (code, headers["Content-Type"]) == (406, "application/json")
    found = json.loads(body)
    assert (found["kind"], found["status"], found["reason"], found["code"]) == (
        *("Status", "Failure", "NotAcceptable", 406),
    )
    assert JSON_STATUSZ in found["message"]


@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        ("", Asked("text")),
        ("text/plain", Asked("text")),
        ("text/plain; charset=utf-8", Asked("text")),
        (f"text/html, {JSON_STATUSZ}", Asked("json", "v1beta1")),
        (f"text/plain;q=0.5, {JSON_STATUSZ};q=0.9", Asked("json", "v1beta1")),
        (f"text/plain, {JSON_STATUSZ}", Asked("text")),
        (f"{JSON_STATUSZ};q=nonsense, */*", Asked("text")),
        ("Application/YAML; G=config.k8s.io; v=v1alpha1; as=Statusz", Asked("yaml", "v1alpha1")),
    ],
)
def test_the_first_form_that_there_is_by_preference(accept: str, asked: Asked) -> None:
    assert negotiate(accept, "Statusz") == asked


@laws
@given(st.text(max_size=200))
def test_no_header_breaks_it(accept: str) -> None:
    code, _, _ = status(accept)
    assert code in (200, 406)


@pytest.mark.parametrize(
    ("exclude", "body"),
    [
        ([], "[+]ping ok\nhealthz check passed\n"),
        (["ping"], "[+]ping excluded: ok\nhealthz check passed\n"),
        (
            ["b", "a"],
            '[+]ping ok\nwarn: some health checks cannot be excluded: no matches for "a", "b"\nhealthz check passed\n',
        ),
    ],
)
def test_healthz_in_words(exclude: list[str], body: str) -> None:
    assert process_healthz(verbose=True, exclude=exclude).body == body
    assert process_healthz(verbose=False, exclude=exclude).body == "ok"
