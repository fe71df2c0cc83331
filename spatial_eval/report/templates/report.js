"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const make = (tag, properties, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const count = n => n.toLocaleString("en");
// Round ties to the even digit, as Python does; toFixed rounds them up.
const format = (value, digits) => {
  if (value == null) return "";
  const scale = 10 ** digits, tie = Number.isInteger(value * 2 ** (digits + 1)) && Math.abs(value * scale * 2) % 2 === 1;
  if (!tie) return value.toFixed(digits);
  const down = Math.floor(value * scale);
  return ((down % 2 ? down + 1 : down) / scale).toFixed(digits);
};

// Wilson's score interval in percent, as spatial_eval.analysis.intervals.wilson.
const wilson = (right, n) => {
  const z = 1.959963984540054, p = right / n, zz = z * z;
  const centre = (p + zz / (2 * n)) / (1 + zz / n);
  const half = z / (1 + zz / n) * Math.sqrt(p * (1 - p) / n + zz / (4 * n * n));
  return [100 * (centre - half), 100 * (centre + half)];
};

// Tooltips, by pointer and by focus; Escape hides them.
const tip = document.getElementById("tip");
const placeTip = (target, text) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const above = box.top - own.height - 8;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(above > 0 ? above : box.bottom + 8) + scrollY}px`;
  if (target.dataset.i) target.setAttribute("aria-describedby", "tip");  // the label of the others is the tip
};
const hideTip = () => { tip.hidden = true; };
const findTipped = event => event.target.closest?.("[data-tip],#grid td[data-i]");
const showTip = event => {
  const target = findTipped(event);
  if (target) placeTip(target, target.dataset.i ? describe(Number(target.dataset.i)) : target.getAttribute("aria-label"));
  else hideTip();
};
document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", event => { if (event.key === "Escape") hideTip(); });

// The grid of all cells.
const { dims, cells, figures, chosen } = data;
const byName = Object.fromEntries(dims.map(dim => [dim.name, dim]));
const varying = dims.filter(dim => dim.values.length > 1);
const places = ["dataset", "model", "split", "limit", "max_new_tokens"];
const total = cells.accuracy.length;
const value = (name, i) => {
  const dim = byName[name];
  return dim.codes ? dim.codes[i] : dim.values.length ? 0 : -1;
};
const shown = (name, code) => code < 0 ? "" : String(byName[name].values[code]);
const describe = i => {
  const keys = dims.filter(d => !places.includes(d.name) && value(d.name, i) >= 0
    && d.name !== "method" && (d.name !== "criterion" || d.values.length > 1))
    .map(d => `${d.name} ${shown(d.name, value(d.name, i))}`);
  const where = places.filter(p => byName[p] && value(p, i) >= 0 && (p === "dataset" || p === "split" || byName[p].values.length > 1));
  const lines = [[shown("method", value("method", i)), ...keys].join(", "),
    `${format(cells.accuracy[i], 1)} % right (95 %: ${format(cells.low[i], 1)} to ${format(cells.high[i], 1)}, n = ${count(cells.n[i])})`];
  if (cells.difference?.[i] != null) lines.push(`${cells.difference[i] >= 0 ? "+" : ""}${format(cells.difference[i], 1)} points against base${cells.gain_low[i] == null ? "" : ` (95 %: ${format(cells.gain_low[i], 1)} to ${format(cells.gain_high[i], 1)})`}`);
  for (const [name, label] of figures) {
    if (!["accuracy", "difference"].includes(name) && cells[name]?.[i] != null) lines.push(`${label}: ${format(cells[name][i], 1)}`);
  }
  if (cells.missing?.[i]) lines.push(`${count(cells.missing[i])} questions missing`);
  lines.push(where.map(p => shown(p, value(p, i))).join(", "));
  return lines.join("\n");
};
const PAIR = "weight1, weight2";
const has = name => byName[name] && byName[name].values.length > 1;
const axes = [...(has("weight1") && has("weight2") ? [PAIR] : []), ...varying.map(dim => dim.name)];
const state = { figure: cells.difference ? "difference" : "accuracy", rows: "", columns: "", only: {} };
const keysOf = axis => axis === PAIR ? ["weight1", "weight2"] : axis ? [axis] : [];
// A cell's codes on an axis, joined; null where it has none.
const codesOf = (axis, i) => {
  const codes = keysOf(axis).map(name => value(name, i));
  return codes.some(code => code < 0) ? null : codes.join(",");
};
const nameCodes = (axis, codes) => keysOf(axis).map((name, k) => shown(name, Number(codes.split(",")[k]))).join(", ");
const sortCodes = all => [...all].sort((a, b) => {
  const x = a.split(",").map(Number), y = b.split(",").map(Number);
  return x[0] - y[0] || (x[1] ?? 0) - (y[1] ?? 0);
});

const chooseAxes = () => {
  const first = wanted => wanted.find(name => axes.includes(name)) ?? "";
  const kinds = new Set(Array.from({ length: total }, (_, i) => ["method", ...places].map(name => byName[name] ? value(name, i) : 0).join()));
  const single = kinds.size === total && axes.includes("method");  // one setting per method: there is nothing to cross
  state.columns = single ? "method" : first(["threshold", "weight", "method", "weight2", "dataset", "model", "split"]);
  const rest = [PAIR, "weight1", "weight2", "dataset", "model", "split", "method"].filter(name => name !== state.columns);
  state.rows = state.columns === "threshold" ? first(rest) : first(rest.filter(name => name === "dataset" || name === "model"));
  for (const name of places) if (byName[name]) state.only[name] = value(name, chosen[0] ?? 0);
};

const inAxis = name => [state.rows, state.columns].some(axis => keysOf(axis).includes(name));
const selectCells = () => {
  const fixedDims = varying.filter(dim => !inAxis(dim.name) && (state.only[dim.name] ?? -2) !== -2);
  const rows = [];
  for (let i = 0; i < total; i++) {
    const onAxes = codesOf(state.rows, i) !== null && codesOf(state.columns, i) !== null;
    if (onAxes && fixedDims.every(dim => value(dim.name, i) === state.only[dim.name])) rows.push(i);
  }
  return rows;
};

const form = document.getElementById("controls");
const makeSelect = (id, label, options, current, change) => {
  const select = make("select", { id, name: id });
  for (const [key, text] of options) select.append(make("option", { value: key, textContent: text, selected: String(key) === String(current) }));
  select.addEventListener("change", () => { change(select.value); render(id); });
  return make("label", { htmlFor: id }, label, select);
};
const renderControls = () => {
  const list = [];
  const names = axes.map(name => [name, name]);
  list.push(makeSelect("figure", "Figure", figures.filter(([name]) => cells[name]), state.figure, v => { state.figure = v; }));
  list.push(makeSelect("rows", "Rows", [["", "one row"], ...names], state.rows, v => { if (v === state.columns) state.columns = state.rows; state.rows = v; }));
  list.push(makeSelect("columns", "Columns", [["", "one column"], ...names], state.columns, v => { if (v === state.rows) state.rows = state.columns; state.columns = v; }));
  for (const dim of varying.filter(d => !inAxis(d.name))) {
    const place = places.includes(dim.name);
    const current = state.only[dim.name];
    state.only[dim.name] = -2;
    const there = new Set(selectCells().map(i => value(dim.name, i)));
    state.only[dim.name] = current;
    const codes = [...there].filter(code => code >= 0).sort((a, b) => a - b);
    if (codes.length < 2) { if (!place) state.only[dim.name] = -2; else if (codes.length) state.only[dim.name] = codes[0]; continue; }
    if (place && !codes.includes(current)) state.only[dim.name] = codes[0];
    const options = [...(place ? [] : [[-2, `best of ${codes.length}`]]), ...codes.map(code => [code, shown(dim.name, code)])];
    list.push(makeSelect(`only-${dim.name}`, dim.name, options, state.only[dim.name] ?? -2, v => { state.only[dim.name] = Number(v); }));
  }
  form.replaceChildren(...list);
};

const grid = document.getElementById("grid");
const render = focus => {
  renderControls();
  const found = new Map(), rowKeys = new Set(), columnKeys = new Set();
  for (const i of selectCells()) {
    const r = codesOf(state.rows, i), c = codesOf(state.columns, i), at = `${r}|${c}`;
    rowKeys.add(r);
    columnKeys.add(c);
    const other = found.get(at);
    const more = other === undefined ? 1 : (cells.accuracy[i] ?? -1) - (cells.accuracy[other] ?? -1);
    if (more > 0 || (more === 0 && chosen.includes(i))) found.set(at, i);  // of equal cells the chosen one
  }
  const rows = sortCodes(rowKeys), columns = sortCodes(columnKeys);
  const figure = cells[state.figure];
  const there = [...found.values()].filter(i => figure[i] != null);
  let low = Infinity, high = -Infinity, best = -1;
  for (const i of there) {
    low = Math.min(low, figure[i]);
    high = Math.max(high, figure[i]);
    if (best < 0 || cells.accuracy[i] > cells.accuracy[best]) best = i;
  }
  const far = Math.max(Math.abs(low), Math.abs(high)) || 1, signed = state.figure === "difference";
  const same = i => signed && cells.gain_low[i] != null && cells.gain_low[i] <= 0 && cells.gain_high[i] >= 0;
  document.getElementById("told").hidden = !signed;
  const dense = columns.length > 16;
  const every = columns.length > 50 ? 10 * Math.ceil(columns.length / 150) : 5;
  const parts = [`<caption>${escape(makeCaption(there))}</caption><thead><tr><th scope="col" rowspan="2" class="name">${escape(state.rows)}</th>`,
    `<th scope="colgroup" colspan="${columns.length || 1}" class="name">${escape(state.columns)}</th></tr><tr>`];
  columns.forEach((key, k) => {
    const name = escape(nameCodes(state.columns, key));
    parts.push(`<th scope="col"${dense && k % every ? ` aria-label="${name}"` : ""}>${dense && k % every ? "" : name}</th>`);
  });
  parts.push("</tr></thead><tbody>");
  let first = true;
  for (const r of rows) {
    parts.push(`<tr><th scope="row">${escape(nameCodes(state.rows, r)) || "&nbsp;"}</th>`);
    for (const c of columns) {
      const i = found.get(`${r}|${c}`);
      if (i === undefined || figure[i] == null) { parts.push('<td class="none"></td>'); continue; }
      const share = signed ? Math.abs(figure[i]) / far : high > low ? (figure[i] - low) / (high - low) : 0.5;
      const marks = [chosen.includes(i) ? "chosen" : "", i === best ? "best" : "", same(i) ? "same" : ""].filter(Boolean).join(" ");
      const to = signed && figure[i] < 0 ? ";--to:var(--neg)" : "";
      parts.push(`<td data-i="${i}" tabindex="${first ? 0 : -1}"${marks ? ` class="${marks}"` : ""} style="--x:${Math.round(100 * share)}%${to}">${signed && figure[i] >= 0 ? "+" : ""}${format(figure[i], 1)}</td>`);
      first = false;
    }
    parts.push("</tr>");
  }
  grid.className = dense ? "dense" : "";
  grid.innerHTML = `${parts.join("")}</tbody>`;
  const key = document.getElementById("ramp");
  key.style.setProperty("--from", signed && low < 0 ? "var(--neg)" : "var(--lo)");
  key.style.setProperty("--mid", signed && low < 0 ? "var(--lo)" : "color-mix(in oklab,var(--lo),var(--hi))");
  document.getElementById("low").textContent = there.length ? format(signed && low < 0 ? -far : signed ? 0 : low, 1) : "";
  document.getElementById("high").textContent = there.length ? format(signed ? far : high, 1) : "";
  if (focus) document.getElementById(focus)?.focus();
};
const escape = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const makeCaption = there => {
  const label = figures.find(([name]) => name === state.figure)[1];
  const where = places.filter(p => byName[p] && !inAxis(p) && (["dataset", "model", "split"].includes(p) || has(p))).map(p => shown(p, state.only[p] ?? 0)).filter(Boolean);
  const open = varying.filter(d => !inAxis(d.name) && !places.includes(d.name) && (state.only[d.name] ?? -2) === -2
    && new Set(there.map(i => value(d.name, i))).size > 1).map(d => d.name);
  const sizes = there.map(i => cells.n[i]), least = Math.min(...sizes.slice(0, 1), ...new Set(sizes)), most = Math.max(...new Set(sizes));
  const n = there.length ? `; n = ${least === most ? count(least) : `${count(least)} to ${count(most)}`}` : "";
  return `${label}: ${where.join(", ")}${n}${open.length ? `; each the best over ${open.join(", ")}` : ""}`;
};
grid.addEventListener("keydown", event => {
  const cell = event.target.closest("td[data-i]");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!cell || !step) return;
  event.preventDefault();
  const lines = [...grid.tBodies[0].rows];
  let r = cell.parentNode.sectionRowIndex, c = cell.cellIndex, next = null;
  do { r += step[0]; c += step[1]; next = lines[r]?.cells[c]; } while (next && next.tagName === "TD" && !next.dataset.i);
  if (next?.dataset.i) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
});
chooseAxes();
render();

// The slider of the accuracy at each threshold.
for (const box of document.querySelectorAll("form[data-curve]")) {
  const curve = JSON.parse(box.dataset.curve);
  const slider = one("input", box), pair = one("select", box), output = one("output", box);
  const line = one(".cursor", box.closest("figure"));
  const readCurve = () => {
    const t = Number(slider.value);
    let step = curve.edges.findIndex(edge => edge >= t);
    if (step < 0) step = curve.edges.length;
    const k = Number(pair?.value ?? 0);
    const sizes = curve.n[k] ?? curve.n[0], moved = curve.to[k] ?? curve.to[0];
    const right = curve.right[k][step], n = sizes[step] ?? sizes[0], [low, high] = wilson(right, n);
    output.textContent = `threshold ${format(t, 2)}: ${format(100 * right / n, 1)} % (95 %: ${format(low, 1)} to ${format(high, 1)}, n = ${count(n)}), ${format(100 * (moved[step] ?? moved[0]) / n, 1)} % to weight1`;
    line.setAttribute("d", `M${curve.x0 + curve.x1 * t} ${curve.y0}V${curve.y1}`);
  };
  slider.addEventListener("input", readCurve);
  pair?.addEventListener("change", readCurve);
  box.addEventListener("submit", event => event.preventDefault());
  readCurve();
}
// Tables: sorted by a click on a heading, filtered by a text, saved as CSV as they are shown.
const textOf = cell => cell.innerText.replace(/\s+/g, " ").trim();
const keyOf = text => { const found = text.replace(/,(?=\d{3})/g, "").match(/^[^a-z\d+-]*([+-]?\d*\.?\d+)/i); return found ? Number(found[1]) : NaN; };
const saveCsv = (table, name) => {
  const lines = [...table.rows].filter(row => !row.hidden).map(row => [...row.cells].map(cell => `"${textOf(cell).replace(/"/g, '""')}"`).join(","));
  const link = make("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: `${name}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const addTools = table => {
  const title = table.caption?.textContent ?? table.className, body = () => [...table.tBodies[0].rows];
  const csv = make("button", { type: "button", textContent: "CSV", title: "Save this table" });
  csv.addEventListener("click", () => saveCsv(table, title.replace(/\W+/g, "_").slice(0, 40)));
  const tools = make("div", { className: "tools" }, csv);
  table.closest(".scroll").append(tools);
  if (table.id) return;  // the grid has selectors of its own
  if (body().length > 5) {
    const filter = make("input", { type: "search", placeholder: "filter rows", ariaLabel: `Filter: ${title}` });
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of body()) { const text = row.textContent.toLowerCase(); row.hidden = !words.every(word => text.includes(word)); }
    });
    tools.prepend(filter);
  }
  if (body().length > 1) [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.classList.contains("axis") || !head.textContent) return;
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", turn = down ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = body().map(row => [row, textOf(row.cells[column])]).map(([row, text]) => [row, text, keyOf(text)]);
      const numbers = keyed.every(([, text, key]) => !text || !Number.isNaN(key));
      keyed.sort((a, b) => !a[1] - !b[1] || turn * (numbers ? a[2] - b[2] : a[1].localeCompare(b[1])));
      table.tBodies[0].append(...keyed.map(([row]) => row));
    });
  });
};
document.querySelectorAll("table.data,#grid").forEach(addTools);

// Light and dark: the system's choice until the switch is used.
const scheme = document.getElementById("scheme"), dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.style.colorScheme || (dark.matches ? "dark" : "light")) === "dark";
const nameScheme = () => { scheme.hidden = false; scheme.textContent = isDark() ? "Light" : "Dark"; };
scheme.addEventListener("click", () => { document.documentElement.style.colorScheme = isDark() ? "light" : "dark"; nameScheme(); });
dark.addEventListener("change", nameScheme);
nameScheme();

// A link to a section must not put its title below the navigation, however many lines that takes.
const nav = one("nav");
new ResizeObserver(() => { document.documentElement.style.scrollPaddingTop = `${nav.offsetHeight + 8}px`; }).observe(nav);
})();
