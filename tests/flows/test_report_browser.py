"""Pages in a real browser."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from flows.report import write_report
from tests.flows.chromium import ARGUMENTS, chromium
from tests.flows.report_samples import full

pytestmark = pytest.mark.browser

SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture
def dom_of(tmp_path):
    """Return the document that Chromium makes of a page, after its scripts."""
    browser = chromium()

    def dump(path, *arguments):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        common = [browser, *ARGUMENTS, "--allow-file-access-from-files", profile]
        command = [*common, *arguments, "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        return done.stdout.decode()

    return dump


def test_a_script_in_any_text_is_shown_and_does_not_run(tmp_path, dom_of):
    data = replace(full(SCRIPT), run={**full(SCRIPT).run, "status": "failed", "error": SCRIPT})
    dom = dom_of(write_report(data, tmp_path / "r.html"))
    assert "<title>broken" not in dom
    assert not re.search(r"<(script|img)\b", dom)
    assert dom.count("&lt;script&gt;") > 15


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_scrolls_sideways(tmp_path, dom_of, width):
    """The frame around the page runs the script: the page itself may not."""
    path = write_report(full("unbroken" * 30), tmp_path / "r.html")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe src='{path.as_uri()}' style='width:{width}px;height:800px;border:0' onload=\""
        "const page = this.contentDocument; const over = b => b.scrollWidth - b.clientWidth;"
        "page.querySelectorAll('details').forEach(d => d.open = true);"
        "const boxes = [page.documentElement, ...page.querySelectorAll('.scroll')];"
        'document.title = `${boxes.length > 9} ${Math.max(...boxes.map(over))}`"></iframe>'
    )
    dom = dom_of(frame, "--window-size=1400,900", "--disable-web-security")
    assert "<title>true 0</title>" in dom
