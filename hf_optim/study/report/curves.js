const names = new Map(buttons.map((b) => [b.dataset.k, b.textContent.trim()]));
const numbers = (text) => text.match(/-?\d+(\.\d+)?(e[+-]?\d+)?/g).map(Number);
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
    return { k: path.parentNode.dataset.k, gone: path.parentNode.classList.contains("gone"), colour: getComputedStyle(path).stroke, points };
  });
  return { series, step: (px) => x0 + ((px - px0) / (px1 - px0)) * (x1 - x0), px0, px1 };
}
for (const svg of all("svg.chart")) {
  let chart = null;
  svg.addEventListener("moved", () => { chart = null; });
  const hair = svg.querySelector(".hair");
  svg.addEventListener("pointermove", (event) => {
    chart ??= prepare(svg);
    const matrix = svg.getScreenCTM();
    const px = (event.clientX - matrix.e) / matrix.a;
    if (px < chart.px0 - 6 || px > chart.px1 + 6) return leave();
    let nearest = null;
    const rows = [];
    for (const s of chart.series) {
      if (hidden.has(s.k) || s.gone) continue;
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
    tip.className = "";
    place(event.clientX, event.clientY);
  });
  function leave() { hideTip(); hair.setAttribute("visibility", "hidden"); }
  svg.addEventListener("pointerleave", leave);
}

// --- another axis: every optimizer's steps stand where its runs were, on average, when they had spent so much ---
const drawn = new Map();
function moveX(section, key) {
  const axis = key === "step" ? null : DATA.tasks[section.dataset.task].axes[key];
  for (const svg of all(".curves svg.chart", section)) {
    const xs = svg.querySelector(".xs");
    if (!drawn.has(xs)) drawn.set(xs, [xs.innerHTML, svg.dataset.x, svg.dataset.name]);
    const [marks, range, name] = drawn.get(xs);
    const [, , start, end] = numbers(range);
    xs.innerHTML = axis ? axis.svg : marks;
    svg.dataset.x = axis ? `0 ${axis.end} ${start} ${end}` : range;
    svg.dataset.name = axis ? axis.name : name;
    for (const part of all(".s", svg)) {
      const knots = axis && axis.knots[part.dataset.k];
      part.classList.toggle("gone", Boolean(axis) && !knots);
      for (const path of all("path", part)) {
        if (!drawn.has(path)) drawn.set(path, path.getAttribute("d"));
        path.setAttribute("d", knots ? moved(drawn.get(path), knots, end) : drawn.get(path));
      }
    }
    svg.dispatchEvent(new Event("moved"));
  }
}
// The x of every point; the end of a lead, beyond the axis at its label, stays.
function moved(d, [from, to], end) {
  return d.replace(/([ML])(-?[\d.]+) /g, (whole, letter, x) => {
    if (letter === "L" && +x > end + 1) return whole;
    const after = from.findIndex((f) => f >= +x - 0.06);
    const i = after < 0 ? from.length - 1 : Math.max(1, after);
    const share = (x - from[i - 1]) / (from[i] - from[i - 1] || 1);
    return letter + (to[i - 1] + share * (to[i] - to[i - 1])).toFixed(1) + " ";
  });
}
for (const section of all("section.task")) {
  const parts = all(".curves .s", section);
  section.querySelector('[data-set="axis"]')?.addEventListener("change", (e) => moveX(section, e.target.value));
  section.querySelector('[data-set="seeds"]')?.addEventListener("change", (e) => {
    for (const part of parts) part.classList.toggle("single", e.target.checked);
  });
  for (const part of parts) {
    part.addEventListener("click", () => {
      const on = !part.classList.contains("single");
      for (const same of parts) if (same.dataset.k === part.dataset.k) same.classList.toggle("single", on);
    });
  }
}

// A chart on its own: the style sheet goes along, since colours and dashes live there.
for (const button of all(".save button")) {
  button.addEventListener("click", () => {
    const shown = button.closest("figure").querySelector("svg");
    const svg = shown.cloneNode(true);
    const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
    style.textContent = document.querySelector("style").textContent + "svg{font-family:system-ui,sans-serif;background:var(--page)}";
    svg.prepend(style);
    const { width, height } = shown.getBoundingClientRect();
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const kind = button.dataset.kind;
    const address = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(svg));
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
