// Draws the differences, the training curves and the answers of a study. The tables stand in the page already.
const state = { model: DATA.models[0], hidden: new Set(), shown: 0 };
const PAGE = 20; // problems at a time

/** The width to draw at, so that text keeps its size on a phone. */
const widthOf = (node) => Math.max(280, node.clientWidth || 520);

const signed = (points) => `${points > 0 ? "+" : points < 0 ? "−" : ""}${Math.abs(points).toFixed(1)}`;

function drawForest() {
  const place = byId("forest");
  if (!place) return;
  const rows = state.model.comparisons;
  const width = widthOf(place);
  const narrow = width < 560;
  const row = narrow ? 46 : 30;
  const top = 8;
  const left = narrow ? 10 : Math.min(300, 20 + 7.2 * Math.max(0, ...rows.map(({ label }) => label.length)));
  const right = width - (narrow ? 10 : 180);
  const bottom = top + row * rows.length;
  const ends = rows.flatMap(({ low, high }) => [100 * low, 100 * high]);
  const low = Math.min(-1, ...ends) * 1.04;
  const high = Math.max(1, ...ends) * 1.04;
  const x = (points) => left + ((points - low) / (high - low)) * (right - left);
  const label = `Difference from the baseline in points: ${rows.map(({ verdict }) => verdict).join("; ")}`;
  const chart = svg("svg", { class: "chart forest", viewBox: `0 0 ${width} ${bottom + 44}`, role: "img", "aria-label": label });
  for (const tick of ticks(low, high, narrow ? 4 : 8)) {
    chart.append(
      svg("line", { class: tick === 0 ? "zero" : "rule", x1: x(tick), x2: x(tick), y1: top, y2: bottom }),
      svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, tick > 0 ? `+${tick}` : String(tick).replace("-", "−")));
  }
  chart.append(svg("text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, `points of right answers, less ${DATA.baseline}`));
  rows.forEach((entry, index) => {
    const y = top + row * (index + 0.5) + (narrow ? 9 : 0);
    const [word, here] = entry.shown === "no difference" ? ["none", ""] : entry.shown.split(" ");
    const look = word === "none" ? "" : `${word} ${here ? "" : "shown"}`;
    const [at, from, to] = [entry.difference, entry.low, entry.high].map((share) => 100 * share);
    const name = narrow ? { x: left, y: y - 14 } : { x: left - 14, y: y + 4, "text-anchor": "end" };
    const group = svg("g", { class: look },
      svg("title", {}, entry.verdict),
      svg("text", { class: "name", ...name }, shortened(entry.label, Math.floor((narrow ? right - 150 : left - 14) / 7.2))),
      svg("line", { class: "whisker", x1: x(from), x2: x(to), y1: y, y2: y }),
      svg("circle", { class: "point", cx: x(at), cy: y, r: 5 }),
      svg("text", { class: "figures", x: width, y: narrow ? y - 14 : y + 4, "text-anchor": "end" }, `${signed(at)}  (${signed(from)} to ${signed(to)})`));
    chart.append(group);
  });
  place.replaceChildren(chart);
}

const byStep = chartGroup({ axis: "optimizer step", unit: (step) => `step ${step}` });
const byTokens = new Map();
const charts = DATA.curves.map(({ name, title, form, budgets }) => {
  const chart = { name, title, form, series: [] };
  const limits = String(budgets);
  if (budgets && !byTokens.has(limits)) byTokens.set(limits, chartGroup({ axis: "new tokens at most", unit: (limit) => `${limit} tokens`, ticksAt: budgets, logarithmic: true }));
  (budgets ? byTokens.get(limits) : byStep).add(byId(budgets ? "budgets" : "curves"), chart);
  return chart;
});

/** The variants of the chosen model that have a curve. */
const drawn = () => state.model.variants.filter(({ curves }) => Object.values(curves).some((points) => points.length));

function drawCurves() {
  const variants = drawn().filter(({ name }) => !state.hidden.has(name));
  for (const chart of charts) {
    chart.series = variants.filter(({ curves }) => curves[chart.name]?.length).map(({ name, look, mark, curves }) => ({ name, look, mark, points: curves[chart.name] }));
  }
  for (const group of [byStep, ...byTokens.values()]) group.draw();
}

function drawLegend() {
  const buttons = drawn().map(({ name, look, mark }) => {
    const key = svg("svg", { class: "key", width: 30, height: 12, "aria-hidden": "true", "data-look": look, "data-mark": mark });
    const button = el("button", { type: "button", "aria-pressed": String(!state.hidden.has(name)) }, key, name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(name)) state.hidden.add(name);
      button.setAttribute("aria-pressed", String(!state.hidden.has(name)));
      drawCurves();
    });
    return el("li", {}, button);
  });
  byId("variants").replaceChildren(...buttons);
  drawKeys();
}

const filters = byId("filters").elements;
const isRight = (share) => share > 0.5;

/** Offer the tasks and variants of the chosen model. */
function fillFilters() {
  const tasks = state.model.answers;
  for (const id of ["answers", "to-answers"]) byId(id).classList.toggle("hidden", tasks.length === 0);
  if (tasks.length === 0) return;
  filters.task.replaceChildren(...tasks.map(({ task }, index) => el("option", { value: index }, task)));
  filters.task.parentNode.classList.toggle("hidden", tasks.length === 1);
  const names = tasks[0].problems[0].answers.map(([name]) => name);
  for (const side of ["first", "second"]) {
    filters[side].replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    filters[`${side}_is`].replaceChildren(...["right or wrong", "right", "wrong"].map((text) => el("option", { value: text }, text)));
  }
  filters.first.value = names.includes(DATA.baseline) ? DATA.baseline : names[0];
  filters.second.value = names.find((name) => name !== filters.first.value && name !== "untrained") ?? names[0];
}

function found() {
  const wanted = filters.text.value.trim().toLowerCase();
  const agrees = (answers, side) => {
    const which = filters[`${side}_is`].value;
    const answer = answers.find(([name]) => name === filters[side].value);
    return which === "right or wrong" || (answer && isRight(answer[1]) === (which === "right"));
  };
  return state.model.answers[filters.task.value].problems.filter(({ prompt, expected, answers }) =>
    agrees(answers, "first") && agrees(answers, "second") && (!wanted || [prompt, expected, ...answers.map(([, , text]) => text)].some((text) => text.toLowerCase().includes(wanted))));
}

function problemCard({ prompt, expected, answers }) {
  const lines = answers.map(([name, share, text]) => {
    const look = share === 1 ? "right" : share === 0 ? "wrong" : "partly";
    const words = share === 1 ? "right" : share === 0 ? "wrong" : `${Math.round(100 * share)}% right`;
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, el("span", { class: `grade ${look}` }, words)), el("td", { class: "answer" }, text));
  });
  return el("div", { class: "card problem" }, el("pre", {}, prompt), el("p", {}, "Expected: ", el("b", {}, expected)), el("table", {}, el("tbody", {}, ...lines)));
}

/** Show the first problems that the filters let through, or further ones. */
function showProblems({ more = false } = {}) {
  if (state.model.answers.length === 0) return;
  const task = state.model.answers[filters.task.value];
  const problems = found();
  state.shown = Math.min(problems.length, (more ? state.shown : 0) + PAGE);
  const from = more ? byId("problems").childElementCount : 0;
  if (!more) byId("problems").replaceChildren();
  byId("problems").append(...problems.slice(from, state.shown).map(problemCard));
  const all = task.of > task.problems.length ? `the first ${task.problems.length} of ${task.of}` : `${task.of}`;
  byId("count").textContent = `${problems.length} of ${all} problems; ${state.shown} shown`;
  byId("next").classList.toggle("hidden", state.shown === problems.length);
}

function drawAll() {
  drawForest();
  drawCurves();
}

function showModel() {
  drawLegend();
  drawAll();
  fillFilters();
  showProblems();
}

byId("filters").addEventListener("input", () => showProblems());
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("next").addEventListener("click", () => showProblems({ more: true }));
smoothByButtons(byStep);
const choice = byId("model");
if (choice) {
  for (const { name } of DATA.models) choice.append(el("option", { value: name }, name));
  choice.addEventListener("change", () => {
    state.model = DATA.models.find(({ name }) => name === choice.value);
    state.hidden.clear();
    showModel();
  });
}
showModel();
new ResizeObserver(drawAll).observe(byId("main"));
