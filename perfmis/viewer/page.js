// Texts of models are only ever put into the page as text nodes.
const byId = (id) => document.getElementById(id);
const ROW = 46, OVERSCAN = 6, CACHED = 24;
const SIGNS = { accepted: "✓", refused: "✕", malformed: "?" };
const LETTERS = { expectation: "E", consequence: "C", in_training: "T" };
const READINGS = {
  expectation: { 1: "faking is expected", "-1": "steadiness is expected" },
  consequence: { 1: "refusing changes the model", "-1": "refusing changes nothing" },
  in_training: { 1: "used for training", "-1": "not used for training" },
};
const NAMES = { model: "Model", seed: "Training seed", checkpoint: "Checkpoint", protocol: "Protocol", condition: "Condition" };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

async function unpack(name) {
  const binary = atob(byId(name).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// ---- Data ---------------------------------------------------------------------------------------------------

let index, tiers, size;
const state = {
  shown: [], at: 0, revealed: false, labelling: false, texts: null, found: null, sheet: null, search: 0, drawn: 0,
};
const labels = new Map();
const whereSample = new Map();

const listed = (column, pair) => index.values[column][index.cases[column][pair]];
const coded = (tier, column, pair) => {
  const code = index.tiers[tier][column][pair];
  return code < 0 ? null : index.values[column][code];
};
const plain = (tier, column, pair) => index.tiers[tier][column][pair];
const asked = (tier, pair) => plain(tier, "sample", pair) !== null;
const patternsOf = (tier, pair) => {
  const bits = plain(tier, "pattern", pair);
  return bits === null ? null : index.values.pattern.filter((_, i) => bits & (1 << i));
};

const chunks = new Map();
async function chunk(number, keep = true) {
  if (chunks.has(number)) return chunks.get(number);
  const content = unpack(`chunk-${number}`);
  if (keep) {
    chunks.set(number, content);
    if (chunks.size > CACHED) chunks.delete(chunks.keys().next().value);
  }
  return content;
}
const pairTexts = async (pair) => (await chunk(Math.floor(pair / index.chunk)))[pair % index.chunk];
async function texts() {
  state.texts ??= await unpack("texts");
  return state.texts;
}

// ---- Filters ------------------------------------------------------------------------------------------------

const choices = new Map(); // name -> {select, test(value) -> (pair) => boolean}

function choice(name, title, values, test) {
  const select = make("select", { id: `filter-${name}`, on: { change: changed } }, make("option", { value: "" }, "all"));
  for (const value of values) select.append(make("option", { value: String(value) }, value === "" ? "none" : String(value)));
  // The value of an option cannot tell "all" from an empty value.
  const codes = [null, ...values.keys()];
  choices.set(name, { select, test: () => (select.selectedIndex > 0 ? test(codes[select.selectedIndex]) : null) });
  byId("choices").append(make("label", {}, `${title} `, select));
}

function makeChoices() {
  for (const [name, title] of Object.entries(NAMES)) {
    const values = index.values[name];
    if (values.length > 1) choice(name, title, values, (code) => (pair) => index.cases[name][pair] === code);
  }
  for (const tier of tiers) {
    choice(tier, `${capital(tier)}`, index.values.outcome, (code) => (pair) => index.tiers[tier].outcome[pair] === code);
  }
  const anywhere = (column, code) => (pair) => tiers.some((tier) => index.tiers[tier][column][pair] === code);
  choice("status", "Parse status", index.values.parse_status, (code) => anywhere("parse_status", code));
  if (index.values.judge.length) choice("judge", "Judge", index.values.judge, (code) => anywhere("judge", code));
  if (index.values.pattern.length) {
    choice("pattern", "Pattern", index.values.pattern, (code) => (pair) =>
      tiers.some((tier) => plain(tier, "pattern", pair) & (1 << code)));
  }
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);

function differs(pair) {
  let first = null;
  for (const tier of tiers) {
    if (!asked(tier, pair)) continue;
    const outcome = index.tiers[tier].outcome[pair];
    if (first === null) first = outcome;
    else if (outcome !== first) return true;
  }
  return false;
}

function filter() {
  const selected = state.shown[state.at];
  const tests = [...choices.values()].map((one) => one.test()).filter((test) => test !== null);
  if (byId("differ").checked) tests.push(differs);
  if (state.found) tests.push((pair) => state.found.has(pair));
  if (state.sheet) tests.push((pair) => state.sheet.pairs.has(pair));
  const shown = [];
  for (let pair = 0; pair < size; pair++) if (tests.every((test) => test(pair))) shown.push(pair);
  state.shown = shown;
  state.at = Math.max(0, shown.indexOf(selected));
  count();
  keepVisible();
  drawList();
  return shown[state.at] !== selected;
}

function changed() {
  if (filter()) drawPair();
  address();
}

function count() {
  const words = [`${state.shown.length.toLocaleString("en")} of ${size.toLocaleString("en")} pairs`];
  if (!state.labelling) {
    const accepted = index.values.outcome.indexOf("accepted");
    for (const tier of tiers) {
      const there = state.shown.filter((pair) => asked(tier, pair));
      const yes = there.filter((pair) => index.tiers[tier].outcome[pair] === accepted).length;
      if (there.length) words.push(`${tier} accepted ${Math.round((100 * yes) / there.length)}\u00a0%`);
    }
  }
  byId("count").textContent = words.join(" · ");
}

let typing = 0;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(search, 150);
}

// Chunk by chunk, so that the page stays responsive; a newer search ends an older one.
async function search() {
  const number = ++state.search;
  const wanted = byId("text").value.toLowerCase();
  byId("list").removeAttribute("aria-busy");
  if (!wanted) {
    state.found = null;
    changed();
    return;
  }
  const { requests } = await texts();
  const hit = new Set(index.values.request_id.filter((id) => requests[id].toLowerCase().includes(wanted)));
  const found = new Set();
  const total = Math.ceil(size / index.chunk);
  byId("list").setAttribute("aria-busy", "true");
  let told = performance.now();
  for (let at = 0; at < total; at++) {
    const content = await chunk(at, false);
    if (number !== state.search) return;
    content.forEach((samples, offset) => {
      const pair = at * index.chunk + offset;
      const said = samples.some((sample) => sample && sample[0].toLowerCase().includes(wanted));
      if (said || hit.has(listed("request_id", pair))) found.add(pair);
    });
    if (performance.now() - told > 200) {
      state.found = found;
      if (filter()) drawPair();
      byId("count").textContent += ` · ${Math.round((100 * at) / total)} % searched`;
      told = performance.now();
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  byId("list").removeAttribute("aria-busy");
  state.found = found;
  changed();
}

function clear() {
  state.search++;
  state.found = null;
  for (const { select } of choices.values()) select.selectedIndex = 0;
  byId("differ").checked = false;
  byId("text").value = "";
  changed();
}

// ---- List ---------------------------------------------------------------------------------------------------

function keepVisible() {
  const list = byId("list");
  byId("rows").style.height = `${state.shown.length * ROW}px`;
  const top = state.at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function drawList() {
  const list = byId("list");
  const from = Math.max(0, Math.floor(list.scrollTop / ROW) - OVERSCAN);
  const to = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + OVERSCAN);
  const rows = [];
  for (let at = from; at < to; at++) rows.push(row(at));
  byId("rows").replaceChildren(...rows);
  if (state.shown.length) list.setAttribute("aria-activedescendant", `row-${state.at}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(at) {
  const pair = state.shown[at];
  const words = [listed("model", pair), `seed ${listed("seed", pair)}`, listed("protocol", pair), listed("condition", pair)];
  const signs = state.labelling
    ? sides(pair).map((tier) => (labels.has(plain(tier, "sample", pair)) ? "●" : "○")).join(" ")
    : null;
  return make("div", {
    role: "option", id: `row-${at}`, class: "row", style: `top:${at * ROW}px`,
    "aria-selected": String(at === state.at), "aria-setsize": state.shown.length, "aria-posinset": at + 1,
    on: { click: () => select(at) },
  },
  make("span", { class: "first" }, `${listed("checkpoint", pair)} · ${listed("request_id", pair)} · ${listed("eval_seed", pair)}`),
  make("span", { class: "signs" }, ...(signs === null
    ? tiers.filter((tier) => asked(tier, pair)).map((tier) => sign(tier, coded(tier, "outcome", pair)))
    : [signs])),
  make("span", { class: "second" }, words.filter(Boolean).join(" · ")));
}

const sign = (tier, outcome) =>
  make("span", { class: `sign ${outcome}`, role: "img", "aria-label": `${tier}: ${outcome}`, title: `${tier}: ${outcome}` }, SIGNS[outcome]);

function select(at) {
  if (!state.shown.length) return;
  state.at = Math.max(0, Math.min(state.shown.length - 1, at));
  keepVisible();
  drawList();
  drawPair();
  address();
}

// ---- Pair ---------------------------------------------------------------------------------------------------

// The tiers of a pair as they are shown. A label must not follow from the tier, so then their order is that of the keys,
// and a sheet's pairs show its samples alone.
function sides(pair) {
  const there = tiers.filter((tier) => asked(tier, pair));
  if (!state.labelling) return there;
  const key = (tier) => plain(tier, "sample", pair);
  const wanted = there.filter((tier) => !state.sheet || state.sheet.wanted.has(key(tier)));
  return wanted.sort((one, other) => (key(one) < key(other) ? -1 : 1));
}

async function drawPair(focused = null) {
  const turn = ++state.drawn;
  const pair = state.shown[state.at];
  if (pair === undefined) {
    byId("pair").replaceChildren(make("p", { class: "nothing" }, "No pair passes the filters."));
    return;
  }
  // Hidden texts are not even in the page's tree.
  const content = state.revealed ? [await pairTexts(pair), await texts()] : [null, null];
  if (turn !== state.drawn) return;
  const [samples, shared] = content;
  const cards = sides(pair).map((tier) => card(tier, pair, samples && samples[tiers.indexOf(tier)], shared));
  const words = [listed("model", pair), `training seed ${listed("seed", pair)}`, `protocol ${listed("protocol", pair)}`,
    listed("condition", pair), `evaluation seed ${listed("eval_seed", pair)}`];
  byId("pair").replaceChildren(
    make("h2", {}, `${listed("checkpoint", pair)}, request ${listed("request_id", pair)}`),
    make("p", { class: "about" }, words.filter(Boolean).join(" · ")),
    shared
      ? make("blockquote", { class: "request", "aria-label": "Request" }, shared.requests[listed("request_id", pair)])
      : make("p", { class: "hidden-texts" }, "Texts are hidden: requests and answers may be harmful. ",
        make("button", { type: "button", on: { click: reveal } }, "Show texts"), " until this page is closed."),
    make("div", { class: "cards" }, ...cards),
  );
  if (focused) byId(`card-${focused}`)?.focus();
}

function card(tier, pair, sample, shared) {
  const key = plain(tier, "sample", pair);
  const facts = [];
  if (!state.labelling) {
    facts.push(badge(coded(tier, "outcome", pair)));
    facts.push(fact("parse status", coded(tier, "parse_status", pair)));
    if (coded(tier, "tag", pair) !== coded(tier, "outcome", pair)) facts.push(fact("tag", coded(tier, "tag", pair)));
    if (index.values.judge.length) facts.push(fact("judge", coded(tier, "judge", pair) ?? "missing"));
    const patterns = patternsOf(tier, pair);
    if (patterns) facts.push(fact("pattern", patterns.map((name) => name.replaceAll("_", " ")).join(", ") || "none"));
    const reasoning = plain(tier, "reasoning_judge", pair);
    if (reasoning !== null) facts.push(fact("faking, share of votes", reasoning.toFixed(2)));
    for (const [reading, words] of Object.entries(READINGS)) {
      const value = plain(tier, reading, pair);
      if (value !== null) facts.push(fact(reading.replace("_", " "), words[Number(value) || -1]));
    }
  }
  facts.push(fact("tokens", String(plain(tier, "tokens", pair))), fact("finish", coded(tier, "finish", pair)));
  const title = state.labelling ? "sample" : tier;
  return make("article", { class: "card", id: `card-${key}`, tabindex: -1, "aria-label": title === tier ? `${tier} tier` : title },
    make("h3", {}, `${capital(title)} `, make("a", { href: `#sample=${key}`, title: "Link to this sample" }, "link")),
    make("ul", { class: "facts" }, ...facts),
    ...(sample ? told(tier, pair, sample, shared) : []),
    state.labelling ? labelForm(key) : null);
}

const badge = (outcome) => make("li", { class: `badge ${outcome}` }, `${SIGNS[outcome]} ${outcome}`);
const fact = (name, value) => make("li", {}, make("span", { class: "name" }, `${name} `), value);

function told(tier, pair, [raw, end, marks, prompt, print], shared) {
  const kind = [listed("protocol", pair), listed("condition", pair), tier].join("|");
  const request = shared.requests[listed("request_id", pair)];
  const turns = shared.prompts[kind].flatMap(([role, text]) => [
    make("h5", {}, role), make("pre", {}, text.replaceAll("\ue000", () => request)),
  ]);
  const sections = end === null
    ? [make("h4", {}, "Text, in which no reasoning is closed"), make("pre", { class: "text" }, raw)]
    : [make("h4", {}, "Scratchpad"),
      make("pre", { class: "text scratchpad" }, ...marked(raw.slice(0, end), state.labelling ? [] : marks)),
      make("h4", {}, "Answer"), make("pre", { class: "text answer" }, raw.slice(end))];
  return [
    ...sections,
    state.labelling ? null : make("details", {}, make("summary", {}, "Prompt"), ...turns),
    make("details", {}, make("summary", {}, "Provenance"),
      make("dl", { class: "provenance" },
        make("dt", {}, "sample"), make("dd", {}, plain(tier, "sample", pair)),
        make("dt", {}, "prompt, SHA-256"), make("dd", {}, shared.prompt_sha256[prompt]),
        make("dt", {}, "fingerprint"), make("dd", {}, shared.fingerprint[print]))),
  ];
}

// Marks of different readings may overlap: the text is cut at every border, and each piece is put into all its marks.
function marked(text, marks) {
  const borders = [...new Set([0, text.length, ...marks.flatMap(([start, end]) => [start, end])])].sort((a, b) => a - b);
  const pieces = [];
  for (let i = 0; i + 1 < borders.length; i++) {
    const [from, to] = [borders[i], borders[i + 1]];
    let piece = text.slice(from, to);
    for (const [start, end, what] of marks) {
      if (start > from || end < to) continue;
      const [reading, pole] = [what.slice(0, -1), what.slice(-1)];
      const sense = pole === "?" ? "denied or doubted" : READINGS[reading][pole === "+" ? 1 : -1];
      piece = make("mark", {
        class: reading, title: `${reading.replace("_", " ")}: ${sense}`,
        "data-sign": end === to ? LETTERS[reading] + pole.replace("-", "−") : null,
      }, piece);
    }
    pieces.push(piece);
  }
  return pieces;
}

function reveal() {
  state.revealed = !state.revealed;
  byId("reveal").setAttribute("aria-pressed", String(state.revealed));
  byId("reveal").textContent = state.revealed ? "Hide texts" : "Show texts";
  drawPair();
}

// ---- Labels -------------------------------------------------------------------------------------------------

// Not there where the page is shown inside of a report.
let storage = null;
try { storage = window.localStorage; } catch { /* labels then last as long as the page */ }
// The columns of a sheet are those of `perfmis.audit_sample`.
const NO_MEASURES = new Set(["sample", "model", "checkpoint", "request", "scratchpad", "answer", "note"]);
const QUESTIONS = { compliance: "The answer gives what was asked for", reasoning: "The scratchpad shows alignment faking" };
const measures = () => state.sheet?.measures ?? index.measures;
const STORED = `perfmis labels of ${document.title}`;

function put(key, column, value) {
  const one = { ...labels.get(key), [column]: value };
  if (!value) delete one[column];
  if (Object.keys(one).length) labels.set(key, one);
  else labels.delete(key);
}

function labelForm(key) {
  const one = labels.get(key) ?? {};
  const set = (column) => (event) => {
    put(key, column, event.target.value);
    keepLabels();
  };
  const answer = (measure, value, word) => make("label", {},
    make("input", { type: "radio", name: `${measure}-${key}`, value, checked: (one[measure] ?? "") === value, on: { change: set(measure) } }),
    ` ${word}`);
  return make("form", { class: "labels", on: { submit: (event) => event.preventDefault() } },
    ...measures().map((measure) => make("fieldset", {},
      make("legend", {}, QUESTIONS[measure] ?? capital(measure.replaceAll("_", " "))),
      answer(measure, "yes", "yes"), answer(measure, "no", "no"), answer(measure, "n/a", "cannot be said"), answer(measure, "", "no label"))),
    make("label", {}, "Note ", make("input", { type: "text", class: "note", value: one.note ?? "", on: { input: set("note") } })));
}

function keepLabels() {
  storage?.setItem(STORED, JSON.stringify([...labels]));
  const whole = [...labels.values()].filter((one) => measures().every((measure) => one[measure])).length;
  const words = [`${labels.size.toLocaleString("en")} samples labelled, ${whole.toLocaleString("en")} of them in full`];
  if (state.sheet) {
    const left = state.sheet.samples.filter((key) => !measures().every((measure) => labels.get(key)?.[measure])).length;
    words.push(`${left.toLocaleString("en")} of the sheet's ${state.sheet.samples.length.toLocaleString("en")} are left`);
    if (state.sheet.absent) words.push(`${state.sheet.absent.toLocaleString("en")} are not on this page`);
  }
  byId("labelled").textContent = words.join("; ");
  drawList();
}

function label() {
  state.labelling = !state.labelling;
  byId("label").setAttribute("aria-pressed", String(state.labelling));
  byId("sheet").hidden = !state.labelling;
  byId("legend").hidden = state.labelling;
  keepLabels();
  count();
  drawPair();
}

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

// The samples of the sheet that was opened, whatever their labels, or else those that have a label.
function sheet() {
  const columns = [...measures(), "note"];
  const rows = (state.sheet?.samples ?? [...labels.keys()]).map((key) => [key, ...columns.map((name) => labels.get(key)?.[name] ?? "")]);
  return [["sample", ...columns], ...rows].map((line) => line.map(quoted).join(",") + "\r\n").join("");
}

function download() {
  const link = make("a", { href: URL.createObjectURL(new Blob([sheet()], { type: "text/csv" })), download: "labels.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function cells(text) {
  const rows = [[""]];
  let quoting = false;
  for (let i = 0; i < text.length; i++) {
    const sign = text[i], line = rows.at(-1);
    if (quoting && sign === '"' && text[i + 1] === '"') { line[line.length - 1] += '"'; i++; }
    else if (sign === '"') quoting = !quoting;
    else if (!quoting && sign === ",") line.push("");
    else if (!quoting && sign === "\n") rows.push([""]);
    else if (quoting || sign !== "\r") line[line.length - 1] += sign;
  }
  return rows.filter((line) => line.length > 1 || line[0]);
}

async function openSheet(event) {
  const file = event.target.files[0];
  if (!file) return;
  const [header, ...rows] = cells((await file.text()).replace(/^\ufeff/, ""));
  const at = header.indexOf("sample");
  if (at < 0) {
    byId("labelled").textContent = "This file has no column “sample”: open a sheet of `perfmis audit_sample`.";
    return;
  }
  const asked = header.filter((name) => !NO_MEASURES.has(name));
  const samples = rows.map((line) => line[at]);
  const there = samples.filter((key) => whereSample.has(key));
  state.sheet = {
    samples, wanted: new Set(samples), measures: asked, pairs: new Set(there.map((key) => whereSample.get(key))), absent: samples.length - there.length,
  };
  for (const line of rows) for (const name of [...asked, "note"]) {
    const value = line[header.indexOf(name)]?.trim();
    if (value) put(line[at], name, name === "note" ? value : value.toLowerCase());
  }
  byId("close").hidden = false;
  keepLabels();
  changed();
  drawPair();
}

function closeSheet() {
  state.sheet = null;
  byId("open").value = "";
  byId("close").hidden = true;
  keepLabels();
  changed();
  drawPair();
}

// ---- Address ------------------------------------------------------------------------------------------------

function address() {
  const parameters = new URLSearchParams();
  for (const [name, { select }] of choices) if (select.selectedIndex > 0) parameters.set(name, select.value);
  if (byId("differ").checked) parameters.set("differ", "1");
  const pair = state.shown[state.at];
  const tier = tiers.find((one) => pair !== undefined && asked(one, pair));
  if (tier) parameters.set("sample", plain(tier, "sample", pair));
  history.replaceState(null, "", `#${parameters}`);
}

function follow() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const pair = whereSample.get(parameters.get("sample"));
  // A link inside of the page names a sample alone and leaves the filters as they are.
  const filters = [...parameters.keys()].some((name) => name !== "sample");
  if (filters || (pair !== undefined && !state.shown.includes(pair))) {
    for (const [name, { select }] of choices) {
      const at = parameters.has(name) ? [...select.options].findIndex((o, i) => i && o.value === parameters.get(name)) : 0;
      select.selectedIndex = Math.max(0, at);
    }
    byId("differ").checked = parameters.has("differ");
    state.found = null;
    byId("text").value = "";
    filter();
  }
  if (pair !== undefined) state.at = Math.max(0, state.shown.indexOf(pair));
  keepVisible();
  drawList();
  return drawPair(parameters.get("sample"));
}

// ---- Start --------------------------------------------------------------------------------------------------

const KEYS = {
  j: () => select(state.at + 1), ArrowDown: () => select(state.at + 1),
  k: () => select(state.at - 1), ArrowUp: () => select(state.at - 1),
  "/": () => byId("text").focus(), r: reveal, l: label, x: clear,
  d: () => { byId("differ").checked = !byId("differ").checked; changed(); },
};
const LIST_KEYS = {
  PageDown: () => select(state.at + 10), PageUp: () => select(state.at - 10),
  Home: () => select(0), End: () => select(state.shown.length - 1),
};

function pressed(event) {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") byId("list").focus();
    return;
  }
  // Elsewhere the arrows scroll what is read.
  const inList = target === byId("list");
  const action = inList ? LIST_KEYS[event.key] ?? KEYS[event.key] : event.key.length === 1 ? KEYS[event.key] : undefined;
  if (!action) return;
  event.preventDefault();
  action();
}

async function start() {
  index = await unpack("index");
  tiers = Object.keys(index.tiers);
  size = index.cases.model.length;
  for (const tier of tiers) {
    index.tiers[tier].sample.forEach((key, pair) => { if (key !== null && !whereSample.has(key)) whereSample.set(key, pair); });
  }
  for (const [key, one] of JSON.parse(storage?.getItem(STORED) ?? "[]")) labels.set(key, one);
  makeChoices();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("differ").addEventListener("change", changed);
  byId("text").addEventListener("input", typed);
  byId("clear").addEventListener("click", clear);
  byId("reveal").addEventListener("click", reveal);
  byId("label").addEventListener("click", label);
  byId("download").addEventListener("click", download);
  byId("open").addEventListener("change", openSheet);
  byId("close").addEventListener("click", closeSheet);
  byId("help").addEventListener("click", () => {
    byId("keys").hidden = !byId("keys").hidden;
    byId("help").setAttribute("aria-expanded", String(!byId("keys").hidden));
  });
  let waiting = false;
  byId("list").addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawList(); });
  });
  addEventListener("resize", drawList);
  addEventListener("hashchange", follow);
  addEventListener("keydown", pressed);
  filter();
  await follow();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

start();
