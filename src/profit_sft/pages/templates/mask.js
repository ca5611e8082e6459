// The mask page: its data, what is kept, and words for numbers. A token's level tells on which side of each threshold it
// lies (p >= GRID[i] where level > 2i, p > GRID[i] where level > 2i + 1), so masked or not is a comparison of whole numbers,
// and every share is exact for all tokens of the data set.
const GRID = DATA.thresholds;
const TOTALS = {
  tokens: DATA.examples.token_counts.reduce((sum, count) => sum + count, 0),
  labels: DATA.examples.label_counts.reduce((sum, count) => sum + count, 0),
};
const FLOORS = decode(DATA.floors, Float32Array);
const SETS = DATA.examples.sets.map((set) => {
  const logProbs = decode(set.log_probs, Float32Array);
  return {
    logProbs, levels: levelsOf(logProbs), weights: set.weights === null ? null : decode(set.weights, Float32Array), alternatives: set.alternatives,
    // Read when the first token is pointed at.
    entropy: late(() => wholeNumbers(set.entropy, TOTALS.labels)),
    rank: late(() => wholeNumbers(set.rank, TOTALS.labels)),
    likeliest: late(() => wholeNumbers(set.likeliest, TOTALS.labels * set.alternatives)),
    likeliestNats: late(() => (set.likeliest_log_probs === null ? null : wholeNumbers(set.likeliest_log_probs, TOTALS.labels * set.alternatives))),
  };
});
const COMPARED = SETS.length === 2;
const NAMES = COMPARED ? ["before", "after"] : [""];
const TEXTS = DATA.examples.texts;
const TOKENS = wholeNumbers(DATA.examples.tokens, TOTALS.tokens);
const ROLES = DATA.examples.roles;
const STRETCHES = wholeNumbers(DATA.examples.stretches, 4 * DATA.examples.stretch_counts.reduce((sum, count) => sum + count, 0));
const KINDS = DATA.examples.kinds === null ? null : decode(DATA.examples.kinds, Uint8Array);
const KIND_NAMES = DATA.kinds;
const WEIGHED = DATA.objective !== null;
const MOST_WEIGHT = WEIGHED ? DATA.figures.weight_edges.at(-1) : 1;
const UNKNOWN = 65535; // of milli-nats
const state = {
  index: DATA.index, upper: DATA.upper, direction: DATA.direction, mode: WEIGHED ? "weights" : "mask", view: COMPARED ? "moved" : "0",
  page: 0, query: "", order: "data", unit: "tokens", sort: "", kind: "", rank: COMPARED ? "moved" : "masked", rows: 15, row: null,
};
const EXAMPLES = layOut();

/** Read numbers that were packed as base64, little-endian as every browser's machine is. */
function decode(text, Type) {
  if (Uint8Array.fromBase64) return new Type(Uint8Array.fromBase64(text).buffer);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index += 1) bytes[index] = raw.charCodeAt(index);
  return new Type(bytes.buffer);
}

/** Read `count` whole numbers of as many bytes as the longest needs. */
function wholeNumbers(text, count) {
  const bytes = decode(text, Uint8Array);
  const width = count === 0 ? 1 : bytes.length / count;
  return new { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width](bytes.buffer);
}

/** Return a function that works its value out once. */
function late(make) {
  let value;
  return () => (value === undefined ? (value = make()) : value);
}

function levelsOf(logProbs) {
  const levels = new Uint16Array(logProbs.length);
  for (let label = 0; label < logProbs.length; label += 1) {
    let low = 0;
    let high = FLOORS.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (FLOORS[middle] <= logProbs[label]) low = middle + 1;
      else high = middle;
    }
    // `low` thresholds lie at or below p; where one lies exactly at it, it is not below.
    levels[label] = 2 * low - (low > 0 && FLOORS[low - 1] === logProbs[label] ? 1 : 0);
  }
  return levels;
}

/** Say where each example's tokens, label tokens and stretches lie in the packed arrays. */
function layOut() {
  const { rows, token_counts: tokenCounts, label_counts: labelCounts, stretch_counts: stretchCounts } = DATA.examples;
  const at = { token: 0, label: 0, stretch: 0 };
  return rows.map((row, index) => {
    const example = { index, row, ...at, tokens: tokenCounts[index], labels: labelCounts[index], stretches: stretchCounts[index], text: null };
    at.token += tokenCounts[index];
    at.label += labelCounts[index];
    at.stretch += stretchCounts[index];
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
const shownWeight = (weight) => String(Number(weight.toPrecision(3)));
const arrow = (values) => values.join(" → ");
const VISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const visible = (text) =>
  text.replace(/[ \n\t\r\u00a0]/g, (found) => VISIBLE[found]).replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (found) => `⟨U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
function keptWords() {
  if (state.mode === "weights") return "that weigh anything";
  if (state.direction === "middle") return `at ${shownP(GRID[state.index])} ≤ p ≤ ${shownP(GRID[state.upper])}`;
  return `at p ${state.direction === "higher" ? "≥" : "≤"} ${shownP(GRID[state.index])}`;
}

// ---- Counting ----

/** Count what a list of level, count, level, count, ... has beyond a level. */
function beyond(pairs, level) {
  let sum = 0;
  for (let at = pairs.length - 2; at >= 0 && pairs[at] > level; at -= 2) sum += pairs[at + 1];
  return sum;
}
const atLeast = (pairs, index = state.index) => beyond(pairs, 2 * index);
const above = (pairs, index = state.index) => beyond(pairs, 2 * index + 1);
const keptOf = (group, set) => {
  if (state.mode === "weights") return group.weighted[set];
  const levels = group.levels[set];
  if (state.direction === "middle") return Math.max(0, atLeast(levels) - above(levels, state.upper));
  return state.direction === "higher" ? atLeast(levels) : group.count - above(levels);
};
const keptShares = (group) => SETS.map((_, set) => keptOf(group, set) / group.count);
/** Count the tokens of a group by what becomes of them before and after. */
function moved(group) {
  const count = state.direction === "higher" ? atLeast : above;
  const [first, second, both] = [count(group.levels[0]), count(group.levels[1]), count(group.both)];
  const found = { kk: both, km: first - both, mk: second - both, mm: group.count - first - second + both };
  return state.direction === "higher" ? found : { kk: found.mm, km: found.mk, mk: found.km, mm: found.kk };
}
function isKept(set, label) {
  if (state.mode === "weights") return SETS[set].weights[label] !== 0;
  const level = SETS[set].levels[label];
  if (state.direction === "lower") return level <= 2 * state.index + 1;
  return level > 2 * state.index && (state.direction === "higher" || level <= 2 * state.upper + 1);
}
const setShown = () => (state.view === "moved" ? 1 : Number(state.view));

/** Mean of what `value` gives each label token of an example. */
function meanOf(example, value) {
  let sum = 0;
  for (let label = example.label; label < example.label + example.labels; label += 1) sum += Number(value(label));
  return example.labels === 0 ? 0 : sum / example.labels;
}
const shareOf = (example, set) => meanOf(example, (label) => isKept(set, label));
const nllOf = (example, set) => meanOf(example, (label) => -SETS[set].logProbs[label]);
const movedOf = (example) => meanOf(example, (label) => isKept(0, label) !== isKept(1, label));
const weightOf = (example, set) => meanOf(example, (label) => SETS[set].weights[label]);

// ---- The line on top ----

function summary() {
  const total = DATA.figures.total;
  const share = el("b", {}, arrow(keptShares(total).map(percent)));
  const nll = `Mean NLL ${arrow(DATA.mean_nll.map((value) => value.toFixed(3)))} nats`;
  const likeliest = `the label is the likeliest token in ${arrow(DATA.top1_share.map(percent))}`;
  const kept = state.mode === "weights"
    ? [`${DATA.objective}: mean weight `, el("b", {}, arrow(total.weight.map((value) => value.toFixed(3)))), "; ", share, " of the tokens weigh anything. "]
    : [share, ` of ${whole(total.count)} label tokens kept ${keptWords()}. `];
  if (!COMPARED) return byId("summary").replaceChildren(...kept, `${nll}; ${likeliest}.`);
  const [before, after] = DATA.mean_nll;
  const verdict = after > before ? "the reference answers have become less likely" : "the reference answers have become likelier";
  return byId("summary").replaceChildren(`${nll}: ${verdict}; ${likeliest}. `, ...kept, "The kept share alone does not say which model is better.");
}
