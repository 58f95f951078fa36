"""Log lines: klog's text, kube-proxy's JSON, verbosity, streams, what is thinned out. Evidence: operations.md 15."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa import logs
from hansa.api.objects import ServiceKey
from hansa.config import LogConfig, VModule
from hansa.logs import BURST, PAUSE_S, Logger, LogHandler, Thinner, go_value

laws = settings(max_examples=50, deadline=None, derandomize=True)
HEAD = re.compile(r"([IWEF])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) ([ \d]{7}) (\w+\.py):(\d+)\] ")


@dataclass
class Written:
    """A handler that writes into memory, and time that the test moves."""

    handler: LogHandler
    out: io.StringIO
    err: io.StringIO
    now: list[float] = field(default_factory=lambda: [0.0])

    @property
    def lines(self) -> list[str]:
        return self.err.getvalue().splitlines()

    @property
    def texts(self) -> list[str]:
        """Text lines without head."""
        return [HEAD.sub("", line) for line in self.lines]

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@contextmanager
def writing(**settings: Any) -> Iterator[Written]:
    """What `configure` does, but with streams in memory, and undone afterwards."""
    root, own = logging.getLogger(), logging.getLogger("hansa")
    before = (root.handlers[:], root.level, own.level)
    out, err, now = io.StringIO(), io.StringIO(), [0.0]
    handler = LogHandler(LogConfig(**settings), output=out, errors=err, clock=lambda: now[0])
    root.handlers[:] = [handler]
    logs._set_levels(handler)
    try:
        yield Written(handler, out, err, now)
    finally:
        handler.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])


log = Logger("hansa.test")


# --- text ---


def test_a_line_has_klogs_head_and_quoted_sentence_and_keys() -> None:
    with writing() as written:
        log.info("health check ports follow", service=ServiceKey("d", "web"), port=30001, ok=True, none=None)
        (line,) = written.lines
    head = HEAD.match(line)
    assert head is not None
    assert (head[1], head[4], head[5]) == ("I", f"{os.getpid():7}", "test_logs.py")
    assert line[head.end() :] == '"health check ports follow" service="d/web" port=30001 ok=true none=<nil>'


def test_severities() -> None:
    with writing() as written:
        log.info("a")
        log.warning("b")
        log.error("c", err=OSError("no"), port=1)
        logging.getLogger("hansa.test").critical("d")
        assert [line[0] for line in written.lines] == ["I", "W", "E", "F"]
        assert written.texts[2] == '"c" err="no" port=1'


def test_lines_of_other_libraries_are_as_they_say_them() -> None:
    with writing() as written:
        logging.getLogger("aiohttp.server").warning("slow by %d s", 3)
        logging.getLogger("aiohttp.server").info("nobody wants to know")
        assert written.texts == ["slow by 3 s"]


def test_values_of_several_lines_are_indented() -> None:
    assert go_value("one\ntwo") == "<\n\tone\n\ttwo\n >"
    with writing() as written:
        try:
            raise ZeroDivisionError("a bug")
        except ZeroDivisionError as error:
            log.exception("service left as it was", error, service="d/web")
        text = written.err.getvalue()
    assert '"service left as it was" err="ZeroDivisionError: a bug" service="d/web" stack=<\n\tTraceback' in text
    assert text.endswith("\tZeroDivisionError: a bug\n >\n")


@laws
@given(st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), st.text(), max_size=3), st.text())
def test_whatever_is_said_is_one_entry(fields: dict[str, str], sentence: str) -> None:
    """Only the first line of an entry has a head, so no text from outside can pretend to be an entry."""
    with writing() as written:
        logging.getLogger("hansa.test").info("x", extra={"event": sentence, "fields": fields})
        heads = [line for line in written.err.getvalue().split("\n") if HEAD.match(line)]
        assert len(heads) == 1


# --- JSON ---


def test_json_has_the_keys_of_kube_proxys() -> None:
    with writing(format="json", verbosity=4) as written:
        log.info("sync", v=2, number=7, kind="full", owner=ServiceKey("d", "web"))
        log.error("sync failed", err="no", number=8)
        logging.getLogger("aiohttp").warning("slow by %d s", 3)
        info, error, other = written.documents
    assert list(info) == ["ts", "logger", "caller", "msg", "v", "number", "kind", "owner"]
    assert info | {"ts": 0, "caller": ""} == {
        "ts": 0,
        "logger": "test",
        "caller": "",
        "msg": "sync",
        "v": 2,
        "number": 7,
        "kind": "full",
        "owner": "d/web",
    }
    assert isinstance(info["ts"], float)
    assert info["ts"] > 1.7e12
    assert re.fullmatch(r"unit/test_logs\.py:\d+", info["caller"])
    assert (error["err"], "v" in error) == ("no", False)
    assert (other["msg"], other["v"]) == ("slow by 3 s", 0)


@laws
@given(st.dictionaries(st.text(), st.text(), max_size=3), st.text())
def test_json_is_one_line_each_whatever_is_said(fields: dict[str, str], sentence: str) -> None:
    with writing(format="json") as written:
        logging.getLogger("hansa.test").info("x", extra={"event": sentence, "fields": fields})
        (line,) = written.err.getvalue().rstrip("\n").split("\n")
        found = json.loads(line)
        assert found["msg"] == sentence
        assert all(
            found[key] == value for key, value in fields.items() if key not in ("ts", "logger", "caller", "msg", "v")
        )


# --- verbosity ---


@pytest.mark.parametrize("number", [0, 1, 2, 4, 9, 10, 2**31 - 1])
def test_lines_up_to_the_verbosity_are_written(number: int) -> None:
    with writing(verbosity=number) as written:
        for v in range(11):
            log.info(f"at {v}", v=v)
        log.warning("always")
        assert written.texts == [*(f'"at {v}"' for v in range(11) if v <= number), '"always"']


def test_vmodule_decides_by_file_and_the_first_pattern_that_matches_counts() -> None:
    modules = (VModule("test_l*", 4), VModule("test_logs", 9), VModule("engine", 2))
    with writing(verbosity=0, vmodule=modules) as written:
        log.info("here", v=4)
        log.info("too much", v=5)
        assert written.texts == ['"here"']
    with writing(verbosity=3, vmodule=(VModule("test_logs", 0),)) as written:
        log.info("less", v=1)
        log.warning("always")
        assert written.texts == ['"always"']


def test_verbosity_changes_while_the_process_runs() -> None:
    with writing() as written:
        log.info("before", v=4)
        logs.set_verbosity(4)
        assert logs.verbosity() == 4
        log.info("after", v=4)
        assert written.texts == ['"after"']


def test_a_line_that_nobody_wants_is_not_made() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("made")

    with writing() as written:
        log.info("x", v=4, value=Costly())
        assert not log.enabled(4)
        assert written.lines == []


def test_keys_reach_whoever_listens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hansa"):
        log.info("sync", number=7, text="a b")
    (record,) = caplog.records
    assert record.getMessage() == 'sync number=7 text="a b"'
    assert record.__dict__["fields"] == {"number": 7, "text": "a b"}


# --- streams ---


def test_streams_may_be_split_and_information_kept_back_for_a_while() -> None:
    with writing(split_stream=True, info_buffer_bytes=10_000, flush_frequency_s=3600.0) as written:
        log.info("one")
        assert written.out.getvalue() == ""
        log.warning("two")
        assert '"one"' in written.out.getvalue(), "what came before a complaint is written before it"
        assert written.texts == ['"two"']
        log.info("three")
        written.handler.flush()
        assert '"three"' in written.out.getvalue()
        log.info("x" * 10_001)
        assert "xxx" in written.out.getvalue(), "the buffer is full"


def test_without_a_split_all_goes_to_standard_error() -> None:
    with writing() as written:
        log.info("one")
        assert (written.out.getvalue(), written.texts) == ("", ['"one"'])


# --- what is said too often ---


def test_the_same_of_the_same_object_is_thinned_out_and_counted() -> None:
    """92 million lines a day about one topology were one of the reasons for hansa (wish 13)."""
    with writing() as written:
        for number in range(1000):
            log.warning("endpoint without node", service="d/web", number=number)
        assert len(written.lines) == BURST
        log.warning("endpoint without node", service="d/api", number=1)
        assert len(written.lines) == BURST + 1, "another object"
        written.now[0] += PAUSE_S
        log.warning("endpoint without node", service="d/web", number=1001)
        assert written.texts[-1] == f'"endpoint without node" service="d/web" number=1001 suppressed={1000 - BURST}'
        assert logs.suppressed_count() == 1000 - BURST


def test_information_without_object_is_never_thinned_out() -> None:
    with writing(verbosity=2) as written:
        for number in range(100):
            log.info("sync", v=2, number=number)
        assert len(written.lines) == 100


def test_the_details_of_an_error_do_not_make_it_another_complaint() -> None:
    with writing() as written:
        for number in range(100):
            log.error("sync failed", err=f"after {number} ms")
        assert len(written.lines) == BURST


@laws
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 30.0)), max_size=100))
def test_the_thinner_loses_count_of_nothing(said: list[tuple[int, float]]) -> None:
    thinner, now, told, admitted = Thinner(), 0.0, 0, 0
    for key, pause in said:
        now += pause
        held_back = thinner.admits(key, now)
        if held_back is not None:
            admitted += 1
            told += held_back
    assert admitted + thinner.suppressed == len(said)
    assert told <= thinner.suppressed
    assert admitted <= 3 * (BURST + now / PAUSE_S + 1)


def test_a_stream_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with writing() as written:
        written.err.close()
        log.warning("nobody hears it")
        written.handler.flush()  # as every few seconds, and when logging is configured anew
