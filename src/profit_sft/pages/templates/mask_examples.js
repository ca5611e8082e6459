// The examples of the mask page, token by token, and the figures of one token.
const PAGE_SIZE = 10;
const LONG_PROMPT = 160; // characters of a folded turn

const textBetween = (start, end) => {
  let text = "";
  for (let token = start; token < end; token += 1) text += TEXTS[TOKENS[token]];
  return text;
};
const textOf = (example) => (example.text ??= textBetween(example.token, example.token + example.tokens));
const stretchesOf = (example) => Array.from({ length: example.stretches }, (_, index) => {
  const [role, start, length, labeled] = STRETCHES.subarray(4 * (example.stretch + index), 4 * (example.stretch + index) + 4);
  return { role: ROLES[role], start, end: start + length, labeled: labeled === 1 };
});
/** Lower case with every character in its place: one that would become two, as İ does, stays. */
const lowered = (text) => {
  const low = text.toLowerCase();
  return low.length === text.length ? low : text.replace(/./gsu, (one) => (one.toLowerCase().length === one.length ? one.toLowerCase() : one));
};
const isMarked = (marks, start, end) => marks.some(([from, to]) => from < end && start < to);

// ---- The system prompt, once ----

/** The system prompt that most examples have, or null. */
const SYSTEM = (function commonSystem() {
  const counts = new Map();
  for (const example of EXAMPLES) {
    const found = stretchesOf(example).find((stretch) => stretch.role === "system" && !stretch.labeled);
    if (!found) continue;
    const text = textBetween(example.token + found.start, example.token + found.end);
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const [text, count] = [...counts].reduce((best, entry) => (entry[1] > best[1] ? entry : best), ["", 0]);
  return count > 1 && 2 * count > EXAMPLES.length ? { text, count } : null;
})();

function systemOnce() {
  if (SYSTEM === null) return;
  const where = SYSTEM.count === EXAMPLES.length ? "all examples" : `${whole(SYSTEM.count)} of ${whole(EXAMPLES.length)} examples`;
  byId("system").replaceChildren(folded("system", SYSTEM.text, [], ` (in ${where})`));
}

// ---- Which examples, in which order ----

const ORDERS = {
  "kept-up": (example) => (state.mode === "weights" ? weightOf : shareOf)(example, setShown()),
  "kept-down": (example) => -(state.mode === "weights" ? weightOf : shareOf)(example, setShown()),
  "nll-down": (example) => -nllOf(example, setShown()),
  "nll-up": (example) => nllOf(example, setShown()),
  "moved-down": (example) => -movedOf(example),
};
let chosen = EXAMPLES; // after search and sorting

function choose() {
  const wanted = /^\s*row:\s*(\d+)\s*$/i.exec(state.query);
  const needle = lowered(state.query);
  chosen = EXAMPLES.filter((example) =>
    wanted ? example.row === Number(wanted[1]) : needle === "" || lowered(textOf(example)).includes(needle));
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

/** Turn to the page that has a row, and mark it; do nothing if it is not among those chosen. */
function showRow(row) {
  const at = chosen.findIndex((example) => example.row === row);
  if (at < 0) return;
  state.page = Math.floor(at / PAGE_SIZE);
  state.row = row;
  renderExamples();
  byId(`row-${row}`).closest("article").scrollIntoView();
}

// ---- One example ----

function exampleCard(example) {
  const flow = el("div", { class: "flow", role: "group", "aria-label": `Tokens of row ${example.row}; arrow keys go from one to the next` });
  const share = el("span", { class: "share" });
  const nll = arrow(SETS.map((_, set) => nllOf(example, set).toFixed(2)));
  const link = el("a", { href: `#row=${example.row}`, title: "Link to this example as it is shown" }, `Row ${example.row}`);
  link.addEventListener("click", (event) => { event.preventDefault(); state.row = example.row; markRow(); remember(); });
  const node = el("article", { class: "example", "aria-labelledby": `row-${example.row}`, "data-row": example.row },
    el("header", {}, el("h3", { id: `row-${example.row}` }, link), el("span", {}, `${whole(example.labels)} label tokens`),
      el("span", {}, `NLL ${nll}`), share, copyButtons(`row-${example.row}`, () => exampleRows(example), () => node)), flow);
  const marks = hits(textOf(example));
  const card = { example, node, share, tokens: [] };
  const offsets = [0];
  for (let token = 0; token < example.tokens; token += 1) offsets.push(offsets[token] + TEXTS[TOKENS[example.token + token]].length);
  flow.append(...(byId("template").checked ? wholePrompts : turns)(card, marks, offsets));
  if (card.tokens.length > 0) card.tokens[0].span.tabIndex = 0;
  return card;
}

/** Turns: what the model learns from token by token, everything else folded to a line, the template's marks left out. */
function turns(card, marks, offsets) {
  const { example } = card;
  let role = "";
  return stretchesOf(example).flatMap((stretch) => {
    const sameTurn = stretch.role === role;
    role = stretch.role;
    if (stretch.labeled) {
      const tokens = labelSpans(card, stretch.start, stretch.end, marks, offsets);
      return [el("div", { class: "turn" }, el("span", { class: "role" }, sameTurn ? "" : stretch.role), el("div", { class: "text" }, ...tokens))];
    }
    const text = textBetween(example.token + stretch.start, example.token + stretch.end);
    if (stretch.role === "system" && text === SYSTEM?.text) return [];
    const inside = marks.map(([from, to]) => [from - offsets[stretch.start], to - offsets[stretch.start]]);
    return [folded(stretch.role, text, inside.filter(([from, to]) => from < text.length && to > 0))];
  });
}

/** The whole text, the template's marks and the prompts as the model reads them. */
function wholePrompts(card, marks, offsets) {
  const parts = [];
  let at = 0;
  const plain = (end) => {
    if (at < end) parts.push(el("span", { class: "prompt" }, ...marked(textBetween(card.example.token + at, card.example.token + end),
      marks.map(([from, to]) => [from - offsets[at], to - offsets[at]]))));
  };
  for (const stretch of stretchesOf(card.example).filter((found) => found.labeled)) {
    plain(stretch.start);
    parts.push(...labelSpans(card, stretch.start, stretch.end, marks, offsets));
    at = stretch.end;
  }
  plain(card.example.tokens);
  return [el("div", { class: "text" }, ...parts)];
}

function labelSpans(card, start, end, marks, offsets) {
  const spans = [];
  for (let token = start; token < end; token += 1) {
    const made = tokenSpan(TEXTS[TOKENS[card.example.token + token]], card.example.label + card.tokens.length);
    if (isMarked(marks, offsets[token], offsets[token + 1])) made.span.classList.add("hit");
    card.tokens.push(made);
    spans.push(made.span);
  }
  return spans;
}

function tokenSpan(text, label) {
  const span = tokenEl(text, { class: "t", "data-label": label });
  if (text.includes("\n")) span.classList.add("line");
  if (text === "") span.classList.add("part");
  if (KINDS !== null && KINDS[label] > 0) span.classList.add(KIND_NAMES[KINDS[label]]);
  return { span, label, look: "" };
}

/** A turn without labels: a line that opens. Open from the start where something was found in what is not on the line. */
function folded(role, text, marks, after = "") {
  const line = text.replace(/\s+/g, " ");
  const short = line === text && text.length <= LONG_PROMPT;
  if (short) return el("div", { class: "turn" }, el("span", { class: "role" }, role + after), el("span", { class: "prompt" }, ...marked(text, marks)));
  const node = el("details", { class: "turn" },
    el("summary", {}, el("span", { class: "role" }, role + after), el("span", { class: "line prompt" }, line.slice(0, 2 * LONG_PROMPT))),
    el("div", { class: "prompt" }, ...marked(text, marks)));
  node.open = marks.length > 0;
  return node;
}

/** Return a text as pieces, of which those that were searched for are marked. */
function marked(text, marks) {
  const pieces = [];
  let done = 0;
  for (const [from, to] of marks.map(([a, b]) => [Math.max(a, 0), Math.min(b, text.length)]).filter(([a, b]) => a < b)) {
    pieces.push(text.slice(done, from), el("mark", {}, text.slice(from, to)));
    done = to;
  }
  return [...pieces, text.slice(done)];
}

/** Return where the query stands in a text, as [start, end) pairs. */
function hits(text) {
  const needle = /^\s*row:/i.test(state.query) ? "" : lowered(state.query);
  const found = [];
  if (needle === "") return found;
  const low = lowered(text);
  for (let at = low.indexOf(needle); at >= 0; at = low.indexOf(needle, at + needle.length)) found.push([at, at + needle.length]);
  return found;
}

// ---- How a token looks ----

/** How far a masked token lies beyond the nearest threshold that would keep it: 1 to 5 factors of ten in p / (1 - p). */
function depthOf(set, label) {
  if (state.mode === "weights") return 1;
  const odds = (p) => Math.log10(p / (1 - p));
  const bounds = state.direction === "middle" ? [state.index, state.upper] : [state.index];
  const own = odds(probability(SETS[set].logProbs[label]));
  const distance = Math.min(...bounds.map((index) => Math.abs(own - odds(GRID[index]))));
  return Number.isFinite(distance) ? Math.min(5, 1 + Math.floor(distance)) : 5;
}

/** Return the classes of a token as it is to be shown. */
function lookOf(label) {
  const shade = (set) => {
    if (!isKept(set, label)) return `m m${depthOf(set, label)}`;
    const share = state.mode === "weights" ? SETS[set].weights[label] / MOST_WEIGHT : probability(SETS[set].logProbs[label]);
    return share < 0 ? "negative" : `p${Math.min(10, Math.round(10 * share))}`;
  };
  if (state.view !== "moved") return shade(Number(state.view));
  const [before, after] = [isKept(0, label), isKept(1, label)];
  if (before === after) return before ? "p3" : "m m1";
  return after ? "came" : "gone";
}

/** Bring the visible tokens up to date; only those whose look has changed are touched. */
function updateExamples() {
  for (const card of onPage) {
    for (const token of card.tokens) {
      const look = lookOf(token.label);
      if (look === token.look) continue;
      if (token.look !== "") token.span.classList.remove(...token.look.split(" "));
      token.span.classList.add(...look.split(" "));
      token.look = look;
    }
    if (state.mode === "weights") {
      card.share.replaceChildren(`mean weight ${arrow(SETS.map((_, set) => shownWeight(weightOf(card.example, set))))}`);
    } else {
      const shares = SETS.map((_, set) => shareOf(card.example, set));
      card.share.replaceChildren(`kept ${arrow(shares.map(percent))}`, meter(shares[setShown()]));
    }
  }
  markRow();
}

function markRow() {
  for (const card of onPage) card.node.classList.toggle("chosen", card.example.row === state.row);
}

function meter(share, second = false) {
  const bar = el("i", second ? { class: "second" } : {});
  bar.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, bar);
}

function heatLegend() {
  const sample = (look, words) => el("li", {}, el("span", { class: `t ${look}` }, "word"), words);
  const ramp = (look, words, from, to) => el("li", {}, `${words} ${from}`, el("span", { class: `ramp ${look}` }), to);
  const items = [];
  if (state.view === "moved") {
    items.push(sample("p3", "kept by both"), sample("m m1", "masked by both"), sample("gone", "kept before, masked after"), sample("came", "masked before, kept after"));
  } else if (state.mode === "weights") {
    items.push(ramp("", "weight", "above 0", shownWeight(MOST_WEIGHT)), sample("m m1", "weight 0"));
    if (DATA.figures.weight_edges[0] < 0) items.push(sample("negative", "negative weight: pushed away"));
  } else {
    items.push(ramp("", "kept: p", "0", "1"), ramp("off", "masked:", "just", "by a factor of 10,000 or more"));
  }
  const kinds = byId("kinds");
  if (kinds?.checked) items.push(sample("core", "core"), sample("style", "style"));
  byId("heat-legend").replaceChildren(...items);
  for (const id of ["heat-legend", "list"]) {
    byId(id).classList.toggle("kinds", kinds?.checked ?? false);
    byId(id).classList.toggle("struck", byId("struck").checked);
  }
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
    ["rank", (set) => whole(set.rank()[label])],
    ["entropy", (set) => (set.entropy()[label] === UNKNOWN ? "not known" : `${(set.entropy()[label] / 1000).toFixed(3)} nats`)],
  ];
  if (WEIGHED) rows.unshift(["weight", (set) => shownWeight(set.weights[label])]);
  const table = el("table", {}, el("tbody"));
  const head = () => el("thead", {}, el("tr", {}, el("td"), ...NAMES.map((name) => el("th", { scope: "col", class: "number" }, name))));
  if (COMPARED) table.prepend(head());
  for (const [name, value] of rows) {
    table.tBodies[0].append(el("tr", {}, el("th", { scope: "row" }, name), ...SETS.map((set) => el("td", {}, value(set)))));
  }
  const states = SETS.map((_, set) => (isKept(set, label) ? "kept" : "masked"));
  const kind = KINDS !== null && KINDS[label] > 0 ? `${KIND_NAMES[KINDS[label]]} token, ` : "";
  return [
    el("div", { class: "word" }, text === "" ? "(goes on with the character before)" : visible(text)),
    table,
    el("div", { class: "likeliest" }, ...SETS.map((set, index) => alternativesOf(set, index, label))),
    el("div", { class: "verdict" }, `${kind}${COMPARED ? `${states[0]} before, ${states[1]} after` : states[0]}`),
  ];
}

/** What the model would rather write here: the likeliest tokens with their p, or the likeliest where no more is known. */
function alternativesOf(set, index, label) {
  const table = el("table", {}, el("caption", {}, `${set.alternatives > 1 ? "likeliest tokens" : "likeliest token"}${COMPARED ? ` ${NAMES[index]}` : ""}`), el("tbody"));
  for (let at = label * set.alternatives; at < (label + 1) * set.alternatives; at += 1) {
    const nats = set.likeliestNats();
    const p = nats === null ? null : Math.exp(-nats[at] / 1000);
    const own = set.rank()[label] === 1 + at - label * set.alternatives;
    table.tBodies[0].append(el("tr", own ? { class: "own" } : {},
      el("td", { class: "mono" }, visible(TEXTS[set.likeliest()[at]])), el("td", {}, p === null ? (own ? "this token" : "") : shownP(p)), el("td", {}, p === null ? "" : meter(p))));
  }
  return table;
}

function tokenOf(event) {
  return event.target.closest?.(".flow .t") ?? null;
}

function goTo(span) {
  for (const old of span.closest(".flow").querySelectorAll('.t[tabindex="0"]')) old.removeAttribute("tabindex");
  span.tabIndex = 0;
  span.focus();
}

function tokenKeys(event) {
  const span = tokenOf(event);
  if (event.key === "Escape") hideTip();
  if (span === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...span.closest(".flow").querySelectorAll(".t")];
  const at = all.indexOf(span);
  const isMasked = (other) => !isKept(setShown(), Number(other.dataset.label));
  const target = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => all.length - 1,
    n: () => all.findIndex((other, index) => index > at && isMasked(other)), p: () => all.findLastIndex((other, index) => index < at && isMasked(other)),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (target === undefined) return;
  event.preventDefault();
  if (all[target()]) goTo(all[target()]);
}
