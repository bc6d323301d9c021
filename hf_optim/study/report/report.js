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

const tip = document.getElementById("tip");
const names = new Map(buttons.map((b) => [b.dataset.k, b.textContent.trim()]));
const numbers = (text) => text.match(/-?\d+(\.\d+)?(e-?\d+)?/g).map(Number);
const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e-3 && Math.abs(v) < 1e5 ? String(+v.toPrecision(4)) : v.toExponential(2));

// The curves are read back from the drawing: pixels to values through the scale that each chart carries.
function prepare(svg) {
  const [x0, x1, px0, px1] = numbers(svg.dataset.x);
  const [low, high, py0, py1] = numbers(svg.dataset.y);
  const f = { linear: (v) => v, log: Math.log10, accuracy: (v) => -Math.log10(1 - v) }[svg.dataset.kind];
  const g = { linear: (v) => v, log: (v) => 10 ** v, accuracy: (v) => 1 - 10 ** -v }[svg.dataset.kind];
  const value = (py) => g(f(low) + ((py - py0) / (py1 - py0)) * (f(high) - f(low)));
  const series = all(".line", svg).map((path) => {
    const at = numbers(path.getAttribute("d"));
    const points = [];
    for (let i = 0; i < at.length; i += 2) points.push([at[i], value(at[i + 1])]);
    return { k: path.parentNode.dataset.k, colour: getComputedStyle(path).stroke, points };
  });
  return { series, step: (px) => x0 + ((px - px0) / (px1 - px0)) * (x1 - x0), px0, px1 };
}
for (const svg of all("svg.chart")) {
  let chart = null;
  const hair = svg.querySelector(".hair");
  svg.addEventListener("pointermove", (event) => {
    chart ??= prepare(svg);
    const matrix = svg.getScreenCTM();
    const px = (event.clientX - matrix.e) / matrix.a;
    if (px < chart.px0 - 6 || px > chart.px1 + 6) return leave();
    let nearest = null;
    const rows = [];
    for (const s of chart.series) {
      if (hidden.has(s.k)) continue;
      const p = s.points.reduce((a, b) => (Math.abs(b[0] - px) < Math.abs(a[0] - px) ? b : a));
      if (nearest === null || Math.abs(p[0] - px) < Math.abs(nearest - px)) nearest = p[0];
      rows.push([s, p]);
    }
    if (nearest === null) return leave();
    const shown = rows.filter(([, p]) => Math.abs(p[0] - nearest) < 12).sort((a, b) => b[1][1] - a[1][1]);
    hair.setAttribute("x1", nearest); hair.setAttribute("x2", nearest); hair.setAttribute("visibility", "visible");
    tip.replaceChildren();
    const head = document.createElement("b");
    const at = chart.step(nearest);
    head.textContent = svg.dataset.name + " " + (svg.dataset.name === "step" ? Math.round(at) : short(at));
    const table = document.createElement("table");
    for (const [s, p] of shown) {
      const row = table.insertRow();
      row.insertCell().textContent = names.get(s.k);
      row.cells[0].style.color = s.colour;
      row.insertCell().textContent = short(p[1]);
    }
    tip.append(head, table);
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 18 + box.width > innerWidth ? event.clientX - box.width - 18 : event.clientX + 18;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY - 20, innerHeight - box.height - 8)) + "px";
  });
  function leave() { tip.style.display = "none"; hair.setAttribute("visibility", "hidden"); }
  svg.addEventListener("pointerleave", leave);
}

// A chart on its own: the style sheet goes along, since colours and dashes live there.
for (const button of all(".save button")) {
  button.addEventListener("click", () => {
    const shown = button.closest("figure").querySelector("svg");
    const svg = shown.cloneNode(true);
    const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
    style.textContent = document.querySelector("style").textContent + "svg{font-family:system-ui,sans-serif;background:var(--page)}";
    svg.prepend(style);
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const { width, height } = shown.getBoundingClientRect();
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const kind = button.dataset.kind;
    const address = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg.outerHTML);
    const save = (href) => {
      const link = document.createElement("a");
      link.href = href;
      link.download = button.closest(".save").dataset.name + "." + kind;
      link.click();
    };
    if (kind === "svg") return save(address);
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      const scale = 3; // fit to be printed
      canvas.width = scale * width;
      canvas.height = scale * height;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      save(canvas.toDataURL("image/png"));
    };
    image.src = address;
  });
}
