"""What `make dist` makes is whole, and what the Dockerfiles copy is there."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from tests.deploy.manifests import DEPLOY, ROOT

from hansa import __version__

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="made on a developer's system")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from pathlib import Path; from make_dist import make_wheel; make_wheel(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT / "tools", check=True, capture_output=True)
    return folder


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(made: Path) -> None:
    (wheel,) = made.glob("*.whl")
    assert wheel.name == f"hansa-{__version__}-py3-none-any.whl", "one wheel for every system"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("hansa-")}
        metadata = Parser().parsestr(archive.read(f"hansa-{__version__}.dist-info/METADATA").decode())
    source = ROOT / "src"
    files = (path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert held == {path.relative_to(source).as_posix() for path in files}
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")


def test_what_is_installed_runs_without_the_repository(made: Path, tmp_path: Path) -> None:
    """With the locked dependencies, and away from the sources."""
    (wheel,) = made.glob("*.whl")
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({packages!r}); "
        "sys.argv[1:] = ['demo', '--manifests']; import hansa; print(hansa.__file__); "
        "from hansa.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))
    assert "kind: Service" in done.stdout


def test_the_source_archive_can_make_the_wheel(made: Path) -> None:
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/hansa/__init__.py", "deploy/kubernetes/linux.yaml"} <= names
    assert not [name for name in names if name.startswith(("site/", ".venv", "tests/"))]


@pytest.mark.parametrize("system", ["linux", "windows"])
def test_dockerfiles_copy_what_is_in_the_repository_or_made_by_make(system: str) -> None:
    text = (DEPLOY / "docker" / system / "Dockerfile").read_text(encoding="utf-8")
    sources = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources
    for source in sources:
        assert f"!{source.rstrip('/')}" in kept, "everything else is ignored"
        assert source.startswith("dist/") or (ROOT / source).exists()
