"""HostLock: one at a time, across processes, ended by the end of the process, however that comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hansa import lock
from hansa.errors import ConfigError
from hansa.lock import HostLock

HOLDER = """
import sys
import tempfile
from pathlib import Path
from hansa.lock import HostLock
with HostLock(Path(sys.argv[1]), "hansa run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_instance_is_told_who_holds_the_lock_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "hansa.lock"
    with holder(path) as other:
        with pytest.raises(ConfigError) as refused, HostLock(path, "hansa cleanup"):
            pass
        text = str(refused.value)
        other.communicate("")
    assert f"hansa run (pid {other.pid}) works on this host already" in text
    assert str(path) in text
    assert "stop it first" in text


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_the_lock_dies_with_the_process_and_what_it_left_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hansa.lock"
    with holder(path) as other:
        other.kill()
        other.wait()
        assert path.read_text(encoding="utf-8") == f"{other.pid} hansa run\n"
        with HostLock(path, "hansa cleanup"):
            assert path.read_text(encoding="utf-8") == f"{os.getpid()} hansa cleanup\n"


def test_it_can_be_taken_again_after_it_was_given_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "hansa.lock"
    for _ in range(2):
        with HostLock(path, "hansa run"), pytest.raises(ConfigError, match="already"), HostLock(path, "hansa run"):
            pass
    assert path.read_text(encoding="utf-8") == ""


def test_an_exception_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "hansa.lock"
    with pytest.raises(RuntimeError), HostLock(path, "hansa run"):
        raise RuntimeError
    with HostLock(path, "hansa run"):
        pass


@pytest.mark.parametrize("left", [b"", b"not a pid\n", b"\xff\xfe\x00", b"12\n"])
def test_a_holder_that_says_nothing_sensible_is_still_refused(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "hansa.lock"
    with HostLock(path, "hansa run"):
        path.write_bytes(left)
        with pytest.raises(ConfigError, match="another hansa works on this host already"), HostLock(path, "x"):
            pass


def test_a_path_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be opened"), HostLock(tmp_path / "file" / "lock", "hansa run"):
        pass


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links always")
def test_a_link_in_a_shared_folder_leads_nowhere(tmp_path: Path) -> None:
    """A temporary folder is everybody's: nobody may have us truncate a file of theirs, or ours."""
    target = tmp_path / "precious"
    target.write_text("content", encoding="utf-8")
    (tmp_path / "hansa.lock").symlink_to(target)
    with pytest.raises(ConfigError), HostLock(tmp_path / "hansa.lock", "hansa run"):
        pass
    assert target.read_text(encoding="utf-8") == "content"


@pytest.mark.skipif(sys.platform == "win32", reason="users have numbers elsewhere only")
@pytest.mark.parametrize(("user", "folder"), [(0, "/run/hansa"), (1000, "TMP/hansa-1000")])
def test_the_default_path_depends_on_who_runs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, folder: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert lock.default_path() == Path(folder.replace("TMP", str(tmp_path))) / "hansa.lock"
