
// --- tables: sort by a column, copy, and show another baseline or metric ---
// Every verdict, number and drawing of every view was computed beforehand; nothing here computes one.
const DATA = JSON.parse(document.getElementById("data").textContent);

// What stands in a column of numbers where there is none; the sizes that are written behind one.
const NOTHING = /^(|–|·|none|never|baseline|not given|not run|\d+\/\d+ runs? failed)$/;
const SIZES = { k: 1e3, kB: 1e3, M: 1e6, MB: 1e6, B: 1e9, GB: 1e9, T: 1e12 };
// A cell's text, null where nothing is there, and the number that it begins with.
function read(cell) {
  const text = cell.textContent.trim();
  const begun = /^(?:[^\d+-]*[^\w+-])?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)( ?)([kMG]?B|[kMT])?(?!\w)/.exec(text);
  if (NOTHING.test(text) || begun === null) return [NOTHING.test(text) ? null : text, null];
  const [, digits, space, size] = begun;
  const times = size === undefined || (space && size === "B") ? 1 : SIZES[size]; // "8 B" are bytes, "8B" are billions
  return [text, Number(digits.replaceAll(",", "")) * times - (text[0] === "<" ? 1e-9 : 0)];
}
for (const table of all("table")) {
  const heads = all("thead th[aria-sort]", table);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [row, read(row.cells[column])]);
      const numeric = column > 0 && rows.every(([, [text, n]]) => text === null || n !== null);
      rows.sort(([, [a, x]], [, [b, y]]) => {
        if (a === null || b === null) return (a === null) - (b === null); // what is not there comes last, either way
        return turn * (numeric ? x - y : a.localeCompare(b));
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}

// Any text as hf_optim/core/safe_text.py writes it (a test compares them): labels, metrics and errors may be anybody's.
const LATEX = { "±": "$\\pm$", "×": "$\\times$", "−": "$-$", "–": "--", "●": "$\\bullet$", "↑": "$\\uparrow$", "↓": "$\\downarrow$",
  "<": "\\textless{}", ">": "\\textgreater{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "`": "\\textasciigrave{}",
  '"': "\\textquotedbl{}", "\\": "\\textbackslash{}" };
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+|inf|nan)(e[+-]?\d+)?( ± [\d.e+-]+)?$/i;
const plain = {
  csv: (said) => {
    const text = said.replace("↑", "(higher is better)").replace("↓", "(lower is better)");
    const safe = /^[=+@＝＋－＠-]/.test(text) && !NUMBER.test(text) ? "'" + text : text; // else a formula
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  },
  latex: (text) => text.replace(/[±×−–●↑↓<>~^`"\\%_&#${}]/g, (c) => LATEX[c] ?? `\\${c}`),
  markdown: (text) => text.replace(/[`|$\\]/g, "\\$&").replace(/&(?=#|[A-Za-z]+;)/g, "&amp;").replace(/<(?=[A-Za-z/!?])/g, "&lt;")
    .replace(/\](?=[[(:])/g, "\\]").replace(/([A-Za-z]):(?=\/\/)/g, "$1\\:").replace(/\b(www)\./gi, "$1\\.")
    .replace(/^(\d*)([-+*_#=~>]+|[.)])(?=\s|$)|^(?=>|~~~)/, "$1\\$2"),
};
function written(cell, kind) {
  return plain[kind](cell.textContent.trim().replace(/\s+/g, " "));
}
function copied(table, kind) {
  const lines = all("tr", table).map((row) => [...row.cells].map((cell) => written(cell, kind)));
  if (kind === "csv") return lines.map((cells) => cells.join(",")).join("\n") + "\n";
  if (kind === "markdown") {
    const rule = lines[0].map((_, i) => (i ? "---:" : "---"));
    return [lines[0], rule, ...lines.slice(1)].map((cells) => `| ${cells.join(" | ")} |`).join("\n") + "\n";
  }
  // after the end of a line, a bracket or a star is its argument
  const [head, ...rows] = lines.map((cells) => (cells.join(" & ") + " \\\\").replace(/^(?=[[*])/, "{}"));
  const rules = ["\\toprule", head, "\\midrule", ...rows, "\\bottomrule"].join("\n");
  return `\\begin{tabular}{l${"r".repeat(lines[0].length - 1)}}\n${rules}\n\\end{tabular}\n`;
}
async function toClipboard(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // a file opened from disk may have no clipboard of its own
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
for (const button of all(".copy button")) {
  const name = button.textContent;
  button.addEventListener("click", async () => {
    await toClipboard(copied(button.closest(".copy").previousElementSibling.querySelector("table"), button.dataset.as));
    button.textContent = "copied";
    setTimeout(() => { button.textContent = name; }, 1200);
  });
}

function show(section) {
  const { metrics } = DATA.tasks[section.dataset.task];
  const [against, by] = section.selects;
  const metric = metrics[by.value], view = metric.bases[against.value]; // by their places: names may be anything
  const table = section.querySelector("table.result");
  all("thead button", table).forEach((b, i) => { b.textContent = view.heads[i]; });
  section.order.forEach((row, i) => {
    row.classList.toggle("base", i === Number(against.value));
    [...view.rows[i], ...metric.rows[i]].forEach(([text, kind], j) => {
      row.cells[j + 1].textContent = text;
      row.cells[j + 1].className = kind;
    });
  });
  const rows = all(".forest .s", section);
  [metric.left, view.right].forEach((panel, side) => {
    if (panel === null) return;
    section.querySelector(`.forest .h${side}`).textContent = panel.head;
    section.querySelector(`.forest .a${side}`).innerHTML = panel.axis;
    rows.forEach((row, i) => { row.querySelector(`.m${side}`).innerHTML = panel.marks[i]; });
  });
  section.querySelector(".asked").hidden = section.selects.every((s) => s.selectedOptions[0].defaultSelected);
}
for (const section of all("section.task")) {
  section.selects = all('[data-set="baseline"], [data-set="metric"]', section);
  if (section.selects.length < 2) continue;
  section.order = [...section.querySelector("table.result").tBodies[0].rows];
  for (const select of section.selects) select.addEventListener("change", () => show(section));
  section.querySelector(".asked button").addEventListener("click", () => {
    for (const s of section.selects) s.selectedIndex = [...s.options].findIndex((o) => o.defaultSelected);
    show(section);
  });
}

