"""A changed file is noticed however it was replaced. Evidence: operations.md 7."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hansa.cli.file_watch import Changes, changes, read_digests


def looks(path: Path) -> Changes:
    return Changes(read_digests([path]))


def is_new(found: Changes, path: Path) -> bool:
    """Two looks, since one may fall into the middle of the writing."""
    first = found.look(read_digests([path]))
    assert not first
    return found.look(read_digests([path]))


def test_content_counts_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("a")
    found = looks(path)
    os.utime(path, (1, 1))
    assert not is_new(found, path)
    path.write_text("b")
    assert is_new(found, path)
    assert not is_new(found, path)


def test_a_file_renamed_over_it(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("a")
    found = looks(path)
    (tmp_path / "new").write_text("b")
    (tmp_path / "new").replace(path)
    assert is_new(found, path)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_config_map_whose_link_is_swapped(tmp_path: Path) -> None:
    for name, text in (("1", "a"), ("2", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.conf").write_text(text)
    (tmp_path / "..data").symlink_to("1")
    path = tmp_path / "config.conf"
    path.symlink_to("..data/config.conf")
    found = looks(path)
    assert not is_new(found, path)
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert is_new(found, path)


def test_a_file_that_goes_says_nothing_and_one_that_comes_back_does_if_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("a")
    found = looks(path)
    path.unlink()
    assert not is_new(found, path)
    path.write_text("a")
    assert not is_new(found, path)
    path.write_text("b")
    assert is_new(found, path)


def test_a_file_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("a")
    found = looks(path)
    for text in ("b", "bc", "bcd"):
        path.write_text(text)
        assert not found.look(read_digests([path]))
    assert found.look(read_digests([path]))


@pytest.mark.asyncio
async def test_following_files(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("a")
    first = read_digests([path])
    path.write_text("b")  # before anybody follows: it is not missed
    found = changes([path], first, poll_s=0.001)
    assert await anext(found, "the end") is None
