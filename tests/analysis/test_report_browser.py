"""The report in a real browser: no error, no request, hover tells a value, a series switches off."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape

import pytest

from megatron_kis.analysis import report
from tests.analysis.synthetic import Truth, write_study
from tests.pages import CHROMIUM, QUIET

pytestmark = pytest.mark.slow

# Runs after the page's own script, as a user would: moves over a point, clicks a legend key, and notes what it sees.
PROBE = """
<script>
window.addEventListener("load", () => {
  const seen = {errors: window.failures, requests: performance.getEntriesByType("resource").map((e) => e.name)};
  const point = document.querySelector("#curves figure svg .pt");
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
  seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, alpha = 1] = numbers(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  seen.page = luminance(behind(document.body));
  seen.faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || element.closest("script, style, #tip, .skip, title, .key") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(numbers(ink).slice(0, 3)), luminance(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) seen.faint.push([element.textContent.trim().slice(0, 30), ink, contrast.toFixed(2)]);
  }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""  # noqa: E501


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of two sizes and three levels."""
    folder = tmp_path_factory.mktemp("page")
    write_study(folder, Truth(facts=60), params=(100_000, 200_000), frequencies=(0, 64, 512))
    return report(folder, folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("window", "dark"),
    [("1200,900", False), ("390,844", False), ("1200,900", True)],
    ids=["desktop", "phone", "dark"],
)
def test_the_page_works_in_a_browser(small_page, tmp_path, window, dark):
    page = small_page.replace(
        "<style>", "<script>window.failures = []; onerror = (m) => { failures.push(m); };</script><style>", 1
    ).replace("</body>", PROBE + "</body>")
    (tmp_path / "probed.html").write_text(page)
    command = [
        CHROMIUM,
        *QUIET,
        f"--window-size={window}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/probed.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S).group(1)))
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert re.match(r"N = 100k · F = 0 .*\nrate 0\.\d{3}", seen["tip"])
    assert seen["before"] == 4 * 3  # bars, line and points; infused and background, over the dose and over the ratio
    assert (seen["after"], seen["pressed"]) == (0, "false")
    assert not seen["wider"]
    assert seen["dark"] == dark == (seen["page"] < 0.1)
    assert seen["faint"] == []  # every text has the contrast that WCAG 2.2 AA asks for


# Runs in a frame of the wanted width (a window has a least one), with everything unfolded, and tells its parent.
LAYOUT = """
<script>
window.addEventListener("load", () => {
  document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
  const seen = {cut: [], outside: [], smallest: 1e9, wide: document.documentElement.scrollWidth};
  for (const box of document.querySelectorAll(".scroll")) {
    const hidden = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight + 1;
    if (hidden) seen.cut.push([box.getAttribute("aria-label"), box.scrollWidth, box.clientWidth]);
  }
  for (const figure of document.querySelectorAll("figure")) {
    const frame = figure.closest("section").getBoundingClientRect();
    for (const text of figure.querySelectorAll("svg text")) {
      const scale = text.getScreenCTM(), box = text.getBoundingClientRect();
      const size = parseFloat(getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
      seen.smallest = Math.min(seen.smallest, size);
      if (box.left < frame.left || box.right > frame.right) seen.outside.push(text.textContent);
    }
  }
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""
FRAME = """<!doctype html><body style="margin: 0"><iframe src="inner.html"
style="border: 0; width: {}px; height: 900px">
</iframe><script>addEventListener("message", (event) => {{
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = event.data;
  document.body.append(out);
}});</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_and_figures_can_be_read(small_page, tmp_path, width):
    (tmp_path / "inner.html").write_text(small_page.replace("</body>", LAYOUT + "</body>"))
    (tmp_path / "frame.html").write_text(FRAME.format(width))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [
        CHROMIUM,
        *QUIET,
        "--hide-scrollbars",
        "--window-size=1500,900",
        profile,
        "--dump-dom",
        f"file://{tmp_path}/frame.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    seen = json.loads(unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S).group(1)))
    assert seen["cut"] == [], "tables that are wider than their place"
    assert seen["outside"] == []
    assert seen["wide"] == width
    assert seen["smallest"] >= 9.5, "CSS pixels"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_prints_on_a_few_light_sheets(tmp_path):
    write_study(tmp_path, Truth(facts=60), params=(100_000, 200_000), frequencies=tuple(range(0, 1300, 60)))
    page = report(tmp_path, tmp_path / "report.html")
    profile, paper = f"--user-data-dir={tmp_path / 'profile'}", tmp_path / "report.pdf"
    command = [CHROMIUM, *QUIET, "--blink-settings=preferredColorScheme=0", profile, f"--print-to-pdf={paper}"]
    subprocess.run([*command, f"file://{page}"], capture_output=True, timeout=90, check=True)
    printed = paper.read_bytes()
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type */Page\b", printed)) <= 12  # 8; 16 with the table of all rates
