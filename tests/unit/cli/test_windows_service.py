"""What of a Windows service needs no Windows: where it logs, and how it hears that it is to stop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hansa.cli import windows_service
from hansa.cli.windows_service import NoServiceManager, RotatingText, Service, give_output


def test_a_log_file_that_has_grown_becomes_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "hansa.log"
    out = RotatingText(path, limit_bytes=10)
    for line in ("first line\n", "second line\n", "third\n"):
        out.write(line)
        out.flush()
    assert out.writable()
    out.close()
    assert path.read_text() == "third\n"
    assert path.with_name("hansa.log.1").read_text() == "second line\n"
    more = RotatingText(path, limit_bytes=100)
    more.write("later\n")
    more.close()
    assert path.read_text() == "third\nlater\n", "a restart goes on with the file"


def test_output_goes_to_a_file_where_there_is_none_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sys.stderr
    give_output(str(tmp_path / "unused"))
    assert sys.stderr is kept
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setenv("PROGRAMDATA", str(tmp_path))
    give_output("")
    print("said")
    print("complained", file=sys.stderr, flush=True)
    text = (tmp_path / "hansa" / "hansa.log").read_text()
    sys.stderr.close()
    assert text == "said\ncomplained\n"


def test_the_word_to_stop_comes_once_early_or_late() -> None:
    heard: list[str] = []
    late = Service()
    late.told_to_stop()
    late.on_stop(lambda: heard.append("late"))
    early = Service()
    early.on_stop(lambda: heard.append("early"))
    early.told_to_stop()
    early.told_to_stop()
    assert heard == ["late", "early"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is one there")
def test_other_systems_have_no_service_manager() -> None:
    with pytest.raises(NoServiceManager, match="only Windows"):
        windows_service.run(lambda _: 0)
