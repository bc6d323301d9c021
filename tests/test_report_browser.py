"""The report in a real browser, at desktop and phone width: it fits, and what can be clicked does what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from study_fakes import make_study

from hf_optim.commands.main import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
# Runs in the page, after the report's own script, and leaves what it saw in an element.
VISIT = """
<script>
addEventListener("load", async () => {
  const seen = {}, saved = [];
  HTMLAnchorElement.prototype.click = function () {
    saved.push([this.download, this.href.slice(0, 22), this.href.length]);
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const off = () => all(".s.off").length;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  const [first, second] = all(".legend button");
  seen.before = off();
  first.click();
  seen.clicked = [off(), first.getAttribute("aria-pressed")];
  first.click();
  seen.again = [off(), first.getAttribute("aria-pressed")];
  second.click(); second.click();
  second.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  seen.alone = all('.legend button[aria-pressed="true"]').map((b) => b.textContent.trim());
  second.click(); second.click();
  second.dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  seen.back = off();
  const curve = all("svg").find((svg) => svg.querySelector(".hair"));
  curve.scrollIntoView();
  const box = curve.getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.4, clientY: box.top + box.height * 0.5, bubbles: true };
  curve.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = document.getElementById("tip"), place = tip.getBoundingClientRect();
  seen.tip = [tip.style.display, tip.textContent];
  seen.inside = place.left >= 0 && place.right <= innerWidth && place.top >= 0 && place.bottom <= innerHeight;
  curve.dispatchEvent(new PointerEvent("pointerleave"));
  seen.left = tip.style.display;
  const details = all("details");
  for (const d of details) d.querySelector("summary").click();
  seen.open = details.every((d) => d.open);
  seen.wideOpen = document.documentElement.scrollWidth - innerWidth;
  for (const b of all("figure .save button").slice(0, 2)) b.click();
  for (let i = 0; i < 40 && saved.length < 2; i++) await new Promise((done) => setTimeout(done, 50));
  seen.saved = saved;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_reader_clicks_through_the_report(width: int, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", labels=("adamw", "smaran", "adan", "a rule with a rather long name"))
    assert main(["report", str(folder)]) == 0
    page = tmp_path / "visited.html"
    page.write_text((folder / "report.html").read_text(encoding="utf-8") + VISIT, encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, "the visit did not come to its end"
    seen = json.loads(unescape(found[1]))
    assert seen["wide"] <= 0 and seen["wideOpen"] <= 0, "the page is wider than the window"
    assert seen["before"] == 0 and seen["clicked"][0] > 0 and seen["clicked"][1] == "false"
    assert seen["again"] == [0, "true"]
    assert len(seen["alone"]) == 1 and seen["back"] == 0
    assert seen["tip"][0] == "block" and "step" in seen["tip"][1] and "smaran" in seen["tip"][1] and seen["inside"]
    assert seen["left"] == "none"
    assert seen["open"]
    (svg, _, _), (png, kind, size) = seen["saved"]
    assert svg.endswith(".svg") and png.endswith(".png") and kind == "data:image/png;base64," and size > 5000
