"""The template for a dataplane of one's own passes its own tests, and its entry point leads to it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hansa.config import Config

TEMPLATE = Path(__file__).parents[2] / "examples" / "dataplane-template"


def test_its_own_tests_pass(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEMPLATE / "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TEMPLATE / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_its_entry_point_is_that_of_a_dataplane(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))
    (target,) = project["project"]["entry-points"]["hansa.dataplanes"].values()
    module, _, name = target.partition(":")
    monkeypatch.syspath_prepend(TEMPLATE / "src")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    plane = getattr(importlib.import_module(module), name)(Config(node_name="n1"))
    assert plane.name == "mine"
