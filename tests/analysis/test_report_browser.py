"""The report in a real browser: no error, no request, hover tells a value, a series switches off."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from analysis import report
from tests.analysis.synthetic import Truth, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
]

# Runs after the page's own script, as a user would: moves over a point, clicks a legend key, and notes what it sees.
PROBE = """
<script>
window.addEventListener("load", () => {
  const seen = {errors: window.failures, requests: performance.getEntriesByType("resource").map((e) => e.name)};
  const point = document.querySelector("figure svg .pt");
  point.scrollIntoView();
  const box = point.getBoundingClientRect();
  const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true};
  point.ownerSVGElement.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = document.getElementById("tip");
  seen.tip = tip.hidden ? null : tip.textContent;
  const section = document.querySelector("#curves");
  const key = section.querySelector(".key");
  const shown = () => [...section.getElementsByClassName(key.dataset.series)].filter((s) => getComputedStyle(s).display !== "none").length;
  seen.before = shown();
  key.click();
  seen.after = shown();
  seen.pressed = key.getAttribute("aria-pressed");
  seen.wider = document.documentElement.scrollWidth > innerWidth;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("window", ["1200,900", "390,844"], ids=["desktop", "phone"])
def test_the_page_works_in_a_browser(tmp_path, window):
    write_study(tmp_path, Truth(facts=60), params=(100_000, 200_000), frequencies=(0, 64, 512))
    page = report(tmp_path, tmp_path / "report.html").read_text()
    page = page.replace(
        "<style>", '<script>window.failures = []; onerror = (m) => { failures.push(m); };</script><style>', 1
    ).replace("</body>", PROBE + "</body>")  # fmt: skip
    (tmp_path / "probed.html").write_text(page)
    command = [
        CHROMIUM,
        *QUIET,
        f"--window-size={window}",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/probed.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S).group(1)))
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert re.match(r"N = 100k · F = 0 .*\nrate 0\.\d{3}", seen["tip"])
    assert seen["before"] == 2 * 2  # line and points, infused and background
    assert (seen["after"], seen["pressed"]) == (0, "false")
    assert not seen["wider"]
