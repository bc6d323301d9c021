"use strict";
// Every optimizer has a number, data-k, wherever it is drawn.
const hidden = new Set();
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const buttons = all(".legend button");
const keys = new Set(buttons.map((b) => b.dataset.k));

function redraw() {
  for (const part of all(".s")) part.classList.toggle("off", hidden.has(part.dataset.k));
  for (const b of buttons) b.setAttribute("aria-pressed", String(!hidden.has(b.dataset.k)));
}
function highlight(k) {
  document.body.classList.toggle("dim", k !== null && !hidden.has(k));
  for (const part of all(".s")) part.classList.toggle("hot", part.dataset.k === k);
}
for (const b of buttons) {
  b.addEventListener("click", () => {
    hidden.has(b.dataset.k) ? hidden.delete(b.dataset.k) : hidden.add(b.dataset.k);
    highlight(null);
    redraw();
  });
  b.addEventListener("dblclick", () => {
    // The two clicks before have cancelled each other: show this one alone, or all again.
    const alone = hidden.size === keys.size - 1 && !hidden.has(b.dataset.k);
    hidden.clear();
    if (!alone) for (const k of keys) if (k !== b.dataset.k) hidden.add(k);
    redraw();
  });
  b.addEventListener("pointerenter", (e) => { if (e.pointerType === "mouse") highlight(b.dataset.k); });
  b.addEventListener("pointerleave", () => highlight(null));
}

// --- tips: the explanation of a column, for mouse, keyboard and touch alike ---
const tip = document.getElementById("tip");
function place(x, y) {
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  const left = x + 18 + box.width > innerWidth ? x - box.width - 18 : x + 18;
  tip.style.left = Math.max(4, Math.min(left, innerWidth - box.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(y - 20, innerHeight - box.height - 8)) + "px";
}
function hideTip() { tip.style.display = "none"; }
for (const b of all("th button[aria-describedby]")) {
  const show = () => {
    tip.className = "told";
    tip.textContent = document.getElementById(b.getAttribute("aria-describedby")).textContent;
    const box = b.getBoundingClientRect();
    place(box.left, box.bottom + 26);
  };
  b.addEventListener("pointerenter", show);
  b.addEventListener("focus", () => { if (b.matches(":focus-visible")) show(); });
  b.addEventListener("pointerleave", hideTip);
  b.addEventListener("blur", hideTip);
}
addEventListener("keydown", (e) => { if (e.key === "Escape") hideTip(); });
