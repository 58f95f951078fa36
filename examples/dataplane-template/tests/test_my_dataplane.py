"""hansa's own checks, on this dataplane's host."""

from __future__ import annotations

from pathlib import Path

from my_dataplane import FileDataplane

from hansa.testing import check_dataplane


def test_it_keeps_what_the_engine_relies_on(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    check_dataplane(lambda: FileDataplane(path), disturb=lambda plane: plane.write({}))
