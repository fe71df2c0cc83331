"use strict";
(() => {
const section = document.getElementById("samples");
const find = selector => section.querySelector(selector);
const make = (tag, properties, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const form = find("form"), card = find("#samples-card"), image = find("img"), none = find(".none");
const OUTCOMES = ["all", "right", "wrong", "fixed", "broken"];
const count = n => n.toLocaleString("en");
const MOST = 8;  // arms that are shown before anything is ticked
let data = JSON.parse(find("#samples-data").textContent);
const small = data.small;  // pictures by name, for a page that is read without its folder
let trunk, views, ticked, list = [], place = 0;
const only = { trunk: 0, view: 0, split: "", relation: "", gold: "", said: "", outcome: "all", text: "" };

// A view is whose answers are filtered on: an arm, or a cell, which takes one arm's answer per question.
const armOf = (view, i) => view < trunk.arms.length ? view : trunk.cells[view - trunk.arms.length].arm[i];
const answer = (view, i) => {
  const arm = trunk.arms[armOf(view, i)];
  return arm && arm.text[i] >= 0 ? { text: arm.text[i], said: arm.said[i], right: arm.right[i], confidence: arm.confidence[i] } : null;
};
const flip = (view, i) => {
  const own = answer(view, i), base = trunk.base < 0 ? null : answer(trunk.base, i);
  return !own || !base || own.right === base.right ? "" : own.right ? "fixed" : "broken";
};
const column = (name, i) => data.texts[trunk.columns[name][i]];
const shownText = text => text === "" ? "(empty)" : text;
const matches = (i, outcome) => {
  const own = answer(only.view, i);
  if (!own) return outcome === "all" && !only.said;
  return outcome === "all" || (outcome === "right" && own.right) || (outcome === "wrong" && !own.right) || flip(only.view, i) === outcome;
};
const passes = i => {
  for (const name of ["split", "relation", "gold"]) if (only[name] && column(name, i) !== only[name].slice(1)) return false;
  const own = answer(only.view, i);
  if (only.said && (!own || data.texts[own.said] !== only.said.slice(1))) return false;
  if (!only.text) return true;
  const texts = [column("question", i), column("sample_id", i), own ? data.texts[own.text] : ""];
  return texts.some(text => text.toLowerCase().includes(only.text.toLowerCase()));
};

const chooseTrunk = k => {
  trunk = data.trunks[k];
  views = [...trunk.arms, ...trunk.cells].map(view => view.label);
  ticked = new Set(trunk.arms.slice(0, MOST).keys());
  const splits = new Set(trunk.columns.split);
  Object.assign(only, { trunk: k, view: trunk.shown, split: splits.size > 1 && trunk.split !== "all" ? `=${trunk.split}` : "", relation: "", gold: "", said: "" });
  if (trunk.base < 0 || views.length < 2) only.outcome = ["fixed", "broken"].includes(only.outcome) ? "all" : only.outcome;
};
const addSelect = (name, label, options, change) => {
  const select = make("select", { id: `samples-${name}` }, ...options);
  select.value = String(only[name]);
  select.addEventListener("change", () => { change(select.value); place = 0; render(select.id); });
  form.append(make("label", { htmlFor: select.id }, label, select));
};
const option = (value, text) => make("option", { value: String(value), textContent: text });
const addTexts = (name, label, texts) => {
  const values = [...new Set(texts)].sort();
  if (values.length < 2) return;
  const options = values.map(text => option(`=${text}`, name === "said" && text === "" ? "unread (no option, or several)" : shownText(text)));
  addSelect(name, label, [option("", "all"), ...options], value => { only[name] = value; });
};
const renderForm = candidates => {
  form.replaceChildren();
  const several = name => new Set(data.trunks.map(other => other[name])).size > 1;
  const names = ["dataset", "model", "max_new_tokens"].filter(name => name === "dataset" || several(name));
  const trunks = data.trunks.map((other, k) => option(k, names.map(name => other[name]).join(", ")));
  if (trunks.length > 1) addSelect("trunk", "Dataset", trunks, value => chooseTrunk(Number(value)));
  const groups = [["Arms", 0, trunk.arms.length], ["Cells", trunk.arms.length, views.length]].filter(([, from, to]) => to > from);
  const options = groups.map(([label, from, to]) =>
    make("optgroup", { label }, ...views.slice(from, to).map((text, k) => option(from + k, text))));
  if (views.length > 1) addSelect("view", "Answers of", options, value => { only.view = Number(value); only.said = ""; });
  const every = trunk.columns.gold.map((_, i) => i);
  const outcomes = OUTCOMES.filter(name => (trunk.base >= 0 && views.length > 1) || !["fixed", "broken"].includes(name));
  const counted = outcomes.map(name => option(name, `${name} (${count(candidates.filter(i => matches(i, name)).length)})`));
  addSelect("outcome", "Outcome", counted, value => { only.outcome = value; });
  for (const name of ["split", "relation", "gold"]) addTexts(name, name[0].toUpperCase() + name.slice(1), every.map(i => column(name, i)));
  const said = every.map(i => answer(only.view, i)).filter(Boolean).map(own => data.texts[own.said]);
  addTexts("said", "Prediction", said);
  const search = make("input", { type: "search", id: "samples-text", value: only.text, placeholder: "question, answer or id" });
  search.addEventListener("input", () => { only.text = search.value; place = 0; render(search.id); });
  form.append(make("label", { htmlFor: search.id }, "Text", search));
};

const renderCard = () => {
  card.hidden = !list.length;
  find("#samples-back").disabled = place <= 0;
  find("#samples-next").disabled = place >= list.length - 1;
  const all = trunk.columns.gold.length;
  find("#samples-place").textContent = list.length ? `${count(place + 1)} of ${count(list.length)}${list.length < all ? ` (of ${count(all)} questions)` : " questions"}` : `none of ${count(all)} questions`;
  if (!list.length) return;
  const i = list[place], address = column("picture", i), name = column("image", i);
  const lack = why => { image.hidden = true; none.hidden = false; none.textContent = name ? `No picture: ${name} ${why}.` : "This sample has no picture."; };
  document.querySelectorAll("#samples-card img.more").forEach(other => other.remove());
  const show = (source, why, others = []) => {
    image.hidden = false;
    none.hidden = !why;
    none.textContent = why;
    image.alt = `picture of sample ${column("sample_id", i)}`;
    image.style.imageOrientation = trunk.stored || source !== first ? "none" : "from-image";
    image.src = source;
    image.after(...others.map((src, k) => {
      const other = make("img", { className: "more", src, alt: `picture ${k + 2} of sample ${column("sample_id", i)}` });
      other.style.imageOrientation = trunk.stored ? "none" : "from-image";
      return other;
    }));
  };
  const [first, ...further] = (address || "").split("\n");
  const fallBack = why => {
    document.querySelectorAll("#samples-card img.more").forEach(other => other.remove());
    if (small[name]) show(small[name], "A small copy: the picture is not where it was when this page was written."); else lack(why);
  };
  image.onerror = () => image.src === small[name] ? lack("cannot be shown") : fallBack("is not where it was when this page was written, and not among the small copies in it");
  if (first) show(first, "", further); else fallBack("was not there when this page was written");
  find(".question").textContent = column("question", i);
  find(".gold").textContent = column("gold", i);
  find("#samples-card .i").textContent = ["relation", "split"].map(key => [key, column(key, i)]).filter(([, text]) => text).map(([key, text]) => `${key} ${text}, `).join("") + `sample ${column("sample_id", i)}`;
  const order = [trunk.base, ...views.keys()].filter((view, k, each) => view >= 0 && each.indexOf(view) === k);
  const rows = order.filter(view => view === trunk.base || view === only.view || ticked.has(view)).map(view => {
    const own = answer(view, i), turned = flip(view, i), arm = trunk.arms[armOf(view, i)];
    const label = view < trunk.arms.length || !own ? views[view] : `${views[view]} → ${arm.label}`;
    return make("tr", { className: `${own ? own.right ? "right" : "wrong" : ""}${view === only.view ? " now" : ""}` },
      make("th", { scope: "row", textContent: label }),
      make("td", { className: "l mark", textContent: own ? `${own.right ? "✓ right" : "✗ wrong"}${turned && ", " + turned}` : "" }),
      make("td", { className: "text", textContent: own ? shownText(data.texts[own.text]) : "no answer" }),
      make("td", { className: "text", textContent: own ? data.texts[own.said] || "unread" : "" }),
      make("td", { textContent: own?.confidence == null ? "" : own.confidence.toFixed(2) }));
  });
  find("#samples-card tbody").replaceChildren(...rows);
};
const renderShown = () => {
  const details = find("#samples-shown");
  details.hidden = views.length < 3;
  const left = trunk.every - trunk.cells.length;
  find("#samples-shown summary").textContent = `Answers shown (${count(views.length)} arms and cells${left ? `; ${count(left)} more cells: python -m spatial_eval samples --cell N` : ""})`;
  find(".ticks").replaceChildren(...views.map((text, view) => {
    const box = make("input", { type: "checkbox", checked: ticked.has(view) });
    box.addEventListener("change", () => { if (box.checked) ticked.add(view); else ticked.delete(view); renderCard(); });
    return make("label", {}, box, text);
  }));
};
const render = focus => {
  const candidates = trunk.columns.gold.map((_, i) => i).filter(passes);
  list = candidates.filter(i => matches(i, only.outcome));
  place = Math.min(place, Math.max(0, list.length - 1));
  const cursor = focus === "samples-text" ? find("#samples-text").selectionStart : null;
  renderForm(candidates);
  renderShown();
  renderCard();
  const target = focus && document.getElementById(focus);
  target?.focus({ preventScroll: true });
  if (cursor !== null) target.setSelectionRange(cursor, cursor);
};
const page = step => { place = Math.min(Math.max(0, place + step), Math.max(0, list.length - 1)); renderCard(); };

// More answers than the page holds lie in a file beside it.
const part = find("#samples-part"), load = find("#samples-part button");
const renderPart = () => {
  part.hidden = data.whole;
  const counts = data.trunks.map(other => other.total).reduce((sum, n) => sum + n, 0);
  const here = data.trunks.map(other => other.columns.gold.length).reduce((sum, n) => sum + n, 0);
  find("#samples-part span").textContent = `This page holds the first ${count(here)} of ${count(counts)} questions; report_samples.js beside it holds all.`;
};
globalThis.spatialEvalSamples = all => {
  if (all.digest !== data.digest) { find("#samples-part span").textContent = "report_samples.js is of another run: make the report again."; return; }
  data = all;
  renderPart();
  chooseTrunk(only.trunk);
  render();
};
load.addEventListener("click", () => {
  const script = document.createElement("script");
  script.onerror = () => { find("#samples-part span").textContent = "report_samples.js is not beside this page: copy it from the sweep's folder."; };
  script.src = "report_samples.js";
  document.head.append(script);
});

find("#samples-back").addEventListener("click", () => page(-1));
find("#samples-next").addEventListener("click", () => page(1));
form.addEventListener("submit", event => event.preventDefault());
document.addEventListener("keydown", event => {
  const box = section.getBoundingClientRect(), inSight = box.top < innerHeight && box.bottom > 0;
  const typing = event.target.closest?.("input,select,textarea,#grid,summary");
  if (!inSight || typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) page(step);
  else if (event.key === "/") find("#samples-text").focus();
  else return;
  event.preventDefault();
});
chooseTrunk(0);
renderPart();
render();
})();
