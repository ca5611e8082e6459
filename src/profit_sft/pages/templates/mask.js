// The mask page. A token carries its cell, the number of thresholds that keep it, so masked or not is a comparison of
// two whole numbers, and every share is exact for all tokens of the data set.
const GRID = DATA.thresholds;
const SETS = DATA.examples.sets.map((set) => ({
  logProbs: decode(set.log_probs, Float32Array),
  entropy: decode(set.entropy, Float32Array),
  rank: decode(set.rank, Uint32Array),
  top1: decode(set.top1, Uint32Array),
  cells: decode(set.cells, Uint16Array),
}));
const COMPARED = SETS.length === 2;
const NAMES = COMPARED ? ["before", "after"] : [""];
const TEXTS = DATA.examples.texts;
const TOKENS = decode(DATA.examples.tokens, Uint32Array);
const PLACES = decode(DATA.examples.positions, Uint32Array);
const KINDS = DATA.examples.kinds === null ? null : decode(DATA.examples.kinds, Uint8Array);
const KIND_NAMES = DATA.kinds;
const PAGE_SIZE = 10;
const LONG_PROMPT = 420;
const state = {
  index: DATA.index, direction: DATA.direction, view: COMPARED ? "moved" : "0", page: 0, query: "", order: "data",
  unit: "tokens", sort: "", kind: "", rank: COMPARED ? "moved" : "masked", rows: 15,
};
const EXAMPLES = layOut();

/** Read numbers that were packed as base64, little-endian as every browser's machine is. */
function decode(text, Type) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index += 1) bytes[index] = raw.charCodeAt(index);
  return new Type(bytes.buffer);
}

/** Say where each example's tokens and label tokens lie in the packed arrays. */
function layOut() {
  const { rows, token_counts: tokenCounts, label_counts: labelCounts } = DATA.examples;
  let token = 0;
  let label = 0;
  return rows.map((row, index) => {
    const example = { index, row, token, label, tokens: tokenCounts[index], labels: labelCounts[index], text: null };
    token += tokenCounts[index];
    label += labelCounts[index];
    return example;
  });
}

// ---- Numbers and words ----

const probability = (logProb) => Math.exp(logProb);
const whole = (number) => number.toLocaleString("en-US");
const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "<0.1%";
  if (value > 99.9 && value < 100) return ">99.9%";
  return `${value.toFixed(1)}%`;
};
function shownP(p) {
  if (p === 0 || p === 1) return String(p);
  if (p > 0.999995) return ">0.99999";
  if (p < 0.0001) return p.toExponential(1);
  return p > 0.99 ? p.toFixed(1 - Math.floor(Math.log10(1 - p))) : String(Number(p.toPrecision(3)));
}
const VISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const visible = (text) =>
  text.replace(/[ \n\t\r\u00a0]/g, (found) => VISIBLE[found]).replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (found) => `⟨U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

// ---- Counting ----

/** Count what a list of cell, count, cell, count, ... has above the threshold. */
function likely(pairs) {
  let sum = 0;
  for (let at = pairs.length - 2; at >= 0 && pairs[at] > state.index; at -= 2) sum += pairs[at + 1];
  return sum;
}
const keptOf = (group, set) => {
  const count = likely(group.cells[set]);
  return state.direction === "higher" ? count : group.count - count;
};
/** Count the tokens of a group by what becomes of them before and after. */
function moved(group) {
  const [first, second, both] = [likely(group.cells[0]), likely(group.cells[1]), likely(group.both)];
  const found = { kk: both, km: first - both, mk: second - both, mm: group.count - first - second + both };
  return state.direction === "higher" ? found : { kk: found.mm, km: found.mk, mk: found.km, mm: found.kk };
}
const isKept = (set, label) => (SETS[set].cells[label] > state.index) === (state.direction === "higher");
const setShown = () => (state.view === "moved" ? 1 : Number(state.view));

function shareOf(example, set) {
  let kept = 0;
  for (let label = example.label; label < example.label + example.labels; label += 1) kept += isKept(set, label);
  return example.labels === 0 ? 0 : kept / example.labels;
}
function nllOf(example, set) {
  let sum = 0;
  for (let label = example.label; label < example.label + example.labels; label += 1) sum -= SETS[set].logProbs[label];
  return example.labels === 0 ? 0 : sum / example.labels;
}
function movedOf(example) {
  let count = 0;
  for (let label = example.label; label < example.label + example.labels; label += 1) {
    count += isKept(0, label) !== isKept(1, label);
  }
  return example.labels === 0 ? 0 : count / example.labels;
}

// ---- Examples ----

function textOf(example) {
  if (example.text === null) {
    let text = "";
    for (let token = example.token; token < example.token + example.tokens; token += 1) text += TEXTS[TOKENS[token]];
    example.text = text;
  }
  return example.text;
}

const ORDERS = {
  "kept-up": (example) => shareOf(example, setShown()),
  "kept-down": (example) => -shareOf(example, setShown()),
  "nll-down": (example) => -nllOf(example, setShown()),
  "nll-up": (example) => nllOf(example, setShown()),
  "moved-down": (example) => -movedOf(example),
};
let chosen = EXAMPLES; // after search and sorting

function choose() {
  const wanted = /^\s*row:\s*(\d+)\s*$/i.exec(state.query);
  const needle = state.query.toLowerCase();
  chosen = EXAMPLES.filter((example) =>
    wanted ? example.row === Number(wanted[1]) : needle === "" || textOf(example).toLowerCase().includes(needle));
  const key = ORDERS[state.order];
  if (key) {
    const keys = new Map(chosen.map((example) => [example, key(example)]));
    chosen = [...chosen].sort((one, other) => keys.get(one) - keys.get(other) || one.index - other.index);
  }
  const found = byId("found");
  if (state.query === "") found.textContent = "";
  else if (chosen.length > 0) found.textContent = `${whole(chosen.length)} of ${whole(EXAMPLES.length)} examples`;
  else if (wanted) found.textContent = `Row ${wanted[1]} is not among the ${whole(EXAMPLES.length)} examples on this page.`;
  else found.textContent = "No example on this page contains that.";
}

let onPage = []; // what the visible examples need when the threshold moves

function renderExamples() {
  hideTip();
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE_SIZE));
  state.page = Math.min(state.page, pages - 1);
  const shown = chosen.slice(state.page * PAGE_SIZE, (state.page + 1) * PAGE_SIZE);
  onPage = shown.map(exampleCard);
  byId("list").replaceChildren(...onPage.map((card) => card.node));
  byId("page").textContent = `Page ${state.page + 1} of ${pages}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page >= pages - 1;
  updateExamples();
}

function exampleCard(example) {
  const flow = el("div", { class: "flow", role: "group", "aria-label": `Tokens of row ${example.row}; arrow keys go from one to the next` });
  const share = el("span", { class: "share" });
  const nll = SETS.map((_, set) => nllOf(example, set).toFixed(2)).join(" → ");
  const title = el("h3", { id: `row-${example.row}` }, `Row ${example.row}`);
  const node = el("article", { class: "example", "aria-labelledby": `row-${example.row}`, "data-row": example.row },
    el("header", {}, title, el("span", {}, `${whole(example.labels)} label tokens`), el("span", {}, `NLL ${nll}`), share), flow);
  const marks = hits(textOf(example));
  const tokens = [];
  let prompt = "";
  let promptStart = 0;
  let offset = 0;
  const endPrompt = () => {
    if (prompt !== "") flow.append(promptSpan(prompt, promptStart, marks));
    prompt = "";
  };
  for (let token = 0, label = 0; token < example.tokens; token += 1) {
    const text = TEXTS[TOKENS[example.token + token]];
    if (label < example.labels && PLACES[example.label + label] === token) {
      endPrompt();
      const made = tokenSpan(text, example.label + label);
      if (marks.some(([start, end]) => start < offset + text.length && offset < end)) made.span.classList.add("hit");
      flow.append(made.span);
      tokens.push(made);
      label += 1;
    } else {
      if (prompt === "") promptStart = offset;
      prompt += text;
    }
    offset += text.length;
  }
  endPrompt();
  if (tokens.length > 0) tokens[0].span.tabIndex = 0;
  return { example, node, share, tokens };
}

function tokenSpan(text, label) {
  const span = el("span", { class: "t", "data-label": label });
  span.textContent = text;
  if (text.includes("\n")) span.classList.add("line");
  if (text === "") span.classList.add("part");
  if (KINDS !== null && KINDS[label] > 0) span.classList.add(KIND_NAMES[KINDS[label]]);
  return { span, label, look: "" };
}

/** Return where the query stands in a text, as [start, end) pairs. */
function hits(text) {
  const needle = /^\s*row:/i.test(state.query) ? "" : state.query.toLowerCase();
  const found = [];
  if (needle === "") return found;
  const low = text.toLowerCase();
  for (let at = low.indexOf(needle); at >= 0; at = low.indexOf(needle, at + needle.length)) found.push([at, at + needle.length]);
  return found;
}

function promptSpan(text, start, marks) {
  const inside = marks.map(([from, to]) => [Math.max(0, from - start), Math.min(text.length, to - start)]).filter(([from, to]) => from < to);
  const span = el("span", { class: "prompt" });
  if (text.length > LONG_PROMPT && inside.length === 0) {
    const hidden = text.slice(180, -180);
    const button = el("button", { type: "button" }, `… ${whole(hidden.length)} more characters`);
    button.addEventListener("click", () => button.replaceWith(hidden));
    span.append(text.slice(0, 180), button, text.slice(-180));
    return span;
  }
  let done = 0;
  for (const [from, to] of inside) {
    span.append(text.slice(done, from), el("mark", {}, text.slice(from, to)));
    done = to;
  }
  span.append(text.slice(done));
  return span;
}

/** Return the class of a token at the present threshold. */
function lookOf(label) {
  const shade = (set) => (isKept(set, label) ? `p${Math.round(10 * probability(SETS[set].logProbs[label]))}` : "m");
  if (state.view !== "moved") return shade(Number(state.view));
  const [before, after] = [isKept(0, label), isKept(1, label)];
  if (before === after) return before ? "p2" : "m";
  return after ? "came" : "gone";
}

/** Bring the visible tokens up to date; only those whose look has changed are touched. */
function updateExamples() {
  for (const card of onPage) {
    for (const token of card.tokens) {
      const look = lookOf(token.label);
      if (look === token.look) continue;
      if (token.look !== "") token.span.classList.remove(token.look);
      token.span.classList.add(look);
      token.look = look;
    }
    const shares = SETS.map((_, set) => shareOf(card.example, set));
    card.share.replaceChildren(`kept ${shares.map(percent).join(" → ")}`, meter(shares[setShown()]));
  }
}

function meter(share, second = false) {
  const bar = el("i", second ? { class: "second" } : {});
  bar.style.width = `${100 * share}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function heatLegend() {
  const sample = (look, text, words) => el("li", {}, el("span", { class: `t ${look}` }, text), words);
  const items = [sample("m", "word", state.view === "moved" ? "masked by both" : "masked")];
  if (state.view === "moved") {
    items.push(sample("p2", "word", "kept by both"), sample("gone", "word", "kept before, masked after"), sample("came", "word", "masked before, kept after"));
  } else {
    items.unshift(el("li", {}, "kept: p 0", el("span", { class: "ramp" }), "1"));
  }
  const kinds = byId("kinds");
  if (kinds !== null && kinds.checked) items.push(sample("core", "word", "core"), sample("style", "word", "style"));
  items.push(el("li", {}, el("span", { class: "prompt mono" }, "word "), "prompt, never trained on"));
  byId("heat-legend").replaceChildren(...items);
  byId("heat-legend").classList.toggle("kinds", kinds !== null && kinds.checked);
}

// ---- The figures of one token ----

const tip = byId("tip");
let tipOf = null;

function showTip(span) {
  if (tipOf === span) return;
  hideTip();
  tipOf = span;
  span.classList.add("open");
  span.setAttribute("aria-describedby", "tip");
  const label = Number(span.dataset.label);
  tip.replaceChildren(...tipContent(span.textContent, label));
  tip.hidden = false;
  const where = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const above = where.top - size.height - 8;
  tip.style.left = `${Math.max(8, Math.min(where.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${above > 8 ? above : where.bottom + 8}px`;
}

function hideTip() {
  if (tipOf === null) return;
  tipOf.classList.remove("open");
  tipOf.removeAttribute("aria-describedby");
  tipOf = null;
  tip.hidden = true;
}

function tipContent(text, label) {
  const rows = [
    ["p", (set) => shownP(probability(set.logProbs[label]))],
    ["log p", (set) => `${set.logProbs[label].toFixed(3)} nats`],
    ["rank", (set) => whole(set.rank[label])],
    ["likeliest", (set) => (set.rank[label] === 1 ? "this token" : `“${visible(TEXTS[set.top1[label]])}”`)],
    ["entropy", (set) => (Number.isNaN(set.entropy[label]) ? "not known" : `${set.entropy[label].toFixed(3)} nats`)],
  ];
  const table = el("table", {}, el("tbody"));
  if (COMPARED) table.prepend(el("thead", {}, el("tr", {}, el("td"), ...NAMES.map((name) => el("th", { scope: "col", class: "number" }, name)))));
  for (const [name, value] of rows) {
    table.tBodies[0].append(el("tr", {}, el("th", { scope: "row" }, name), ...SETS.map((set) => el("td", {}, value(set)))));
  }
  const states = SETS.map((_, set) => (isKept(set, label) ? "kept" : "masked"));
  const kind = KINDS !== null && KINDS[label] > 0 ? `${KIND_NAMES[KINDS[label]]} token, ` : "";
  return [
    el("div", { class: "word" }, text === "" ? "(goes on with the character before)" : visible(text)),
    table,
    el("div", { class: "verdict" }, `${kind}${COMPARED ? `${states[0]} before, ${states[1]} after` : states[0]}`),
  ];
}

function tokenOf(event) {
  const span = event.target.closest?.(".flow .t");
  return span ?? null;
}

function goTo(span) {
  for (const old of span.parentElement.querySelectorAll('.t[tabindex="0"]')) old.removeAttribute("tabindex");
  span.tabIndex = 0;
  span.focus();
}

function tokenKeys(event) {
  const span = tokenOf(event);
  if (event.key === "Escape") hideTip();
  if (span === null) return;
  const all = [...span.parentElement.querySelectorAll(".t")];
  const at = all.indexOf(span);
  const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  if (all[target]) goTo(all[target]);
}

// ---- Drawing once a frame; mask_charts.js and mask_controls.js come after ----

let frame = 0;
/** Draw what depends on the threshold, once a frame at most. */
function schedule() {
  if (frame === 0) {
    frame = requestAnimationFrame(() => {
      frame = 0;
      renderThreshold();
      updateExamples();
      renderFigures();
    });
  }
}
