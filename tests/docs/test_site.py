"""The built site: strict, without internet, and as a browser shows it at the width of a desk and of a phone.

What is looked at is structure, not pixels: one heading, navigation, pictures drawn, nothing wider than the screen.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import ROOT
from tests.docs.test_pages import navigation

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
DESK, PHONE = 1280, 390  # pixels

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed: run `make docs` once"
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium here: apt-get install chromium")

# Shows a page in a frame of some width, waits until its pictures are drawn, and writes down what it found. The page
# cannot tell: it is served from the same place.
LOOK = """<!doctype html><meta charset="utf-8"><title>look</title>
<iframe id=frame style="border:0;height:900px;width:WIDTHpx"></iframe>
<script>
const frame = document.getElementById("frame");
function found() {
  const page = frame.contentDocument, all = (what) => [...page.querySelectorAll(what)];
  return {
    headings: all("h1").map(each => each.textContent.replace("¶", "").trim()),
    tabs: all(".md-tabs__link").length,
    tabsShown: all(".md-tabs").some(each => each.getBoundingClientRect().height > 0),
    menuShown: all("label.md-header__button[for=__drawer]").some(each => each.getBoundingClientRect().width > 0),
    waiting: all("pre.mermaid").length,
    pictures: all("div.mermaid").map(each => Math.round(each.getBoundingClientRect().height)),
    blocks: all(".highlight").length,
    tooWide: page.documentElement.scrollWidth - frame.clientWidth,
  };
}
const until = Date.now() + 20000;
frame.onload = function look() {
  const now = found();
  if (now.waiting && Date.now() < until) return setTimeout(look, 50);
  document.body.append(Object.assign(document.createElement("output"), {textContent: JSON.stringify(now)}));
};
frame.src = "/PAGE";
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@needs_mkdocs
def test_every_page_of_the_navigation_is_built(site: Path) -> None:
    for name in navigation():
        stem = name.removesuffix(".md").removesuffix("index").strip("/")
        assert (site / stem / "index.html").exists(), name


@needs_mkdocs
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?(https?:)?//[^\"'> ]+|<link[^>]*rel=\"?(?:stylesheet|icon|preconnect)\"?[^>]*href=[\"']?https?://"
    )
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text(encoding="utf-8")), page.relative_to(site)


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def look(site: Path, address: str, page: str, width: int) -> dict[str, Any]:
    """What a browser without any network but `address` makes of the page."""
    harness = site / f"look-{page.replace('/', '-')}{width}.html"
    harness.write_text(LOOK.replace("WIDTH", str(width)).replace("PAGE", page), encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--window-size={width + 100},1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
        f"http://{address}/{harness.name}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    with contextlib.suppress(FileNotFoundError):
        harness.unlink()
    match = re.search(r"<output>(.*?)</output>", done.stdout, re.DOTALL)
    assert match is not None, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return found


@needs_mkdocs
@needs_browser
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize(
    ("page", "heading"), [("", "hansa"), ("explain/networks/", "Networks: l2bridge and overlay, and who makes what")]
)
def test_landing_page_and_an_article_look_right(site: Path, address: str, page: str, heading: str, width: int) -> None:
    found = look(site, address, page, width)
    assert found["headings"] == [heading]
    assert found["waiting"] == 0
    assert found["pictures"], "the picture is not drawn"
    assert all(height > 60 for height in found["pictures"])
    assert found["blocks"] > 0
    assert found["tooWide"] <= 0
    assert found["tabsShown"] is (width == DESK)
    assert found["menuShown"] is (width == PHONE)
    assert found["tabs"] >= 5


@needs_mkdocs
@needs_browser
def test_a_page_that_is_too_wide_and_has_no_picture_is_seen(site: Path, address: str) -> None:
    (site / "wide").mkdir(exist_ok=True)
    (site / "wide" / "index.html").write_text(
        "<!doctype html><h1>one</h1><h1>two</h1><div style='width:2000px'>.</div>"
    )
    found = look(site, address, "wide/", PHONE)
    assert found["headings"] == ["one", "two"]
    assert found["tooWide"] > 1000
    assert found["pictures"] == []
