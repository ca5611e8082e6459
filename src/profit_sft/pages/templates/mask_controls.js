// When what is drawn, what the controls do, and the view in the address.

// ---- Drawing once a frame ----

// What is on the screen follows the threshold at once; the rest is drawn when the threshold has come to rest.
const DRAWN = {
  probabilities: [...(WEIGHED ? [weights] : []), histogram, curve], movement: COMPARED ? [movement, density] : [], tokens: [tokenTable], places: [positions, sortTable],
};
const onScreen = new Set();
const stale = new Set();
let rest = 0;
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

function draw(section) {
  stale.delete(section);
  if (section === "movement" && state.mode === "weights") return; // hidden
  for (const figure of DRAWN[section]) figure();
}

function renderFigures() {
  for (const section of Object.keys(DRAWN)) {
    if (onScreen.has(section)) draw(section);
    else stale.add(section);
  }
  clearTimeout(rest);
  rest = setTimeout(() => { [...stale].forEach(draw); remember(); }, 150);
}

function watchScreen() {
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) onScreen.add(target.id);
      else onScreen.delete(target.id);
      if (isIntersecting && stale.has(target.id)) draw(target.id);
    }
  });
  for (const section of Object.keys(DRAWN)) if (byId(section) !== null) observer.observe(byId(section));
}

// ---- The threshold ----

function renderThreshold() {
  const threshold = GRID[state.index];
  const words = state.mode === "weights"
    ? `mean weight ${arrow(FIGURES.total.weight.map((value) => value.toFixed(3)))}`
    : `${arrow(keptShares(FIGURES.total).map(percent))} kept`;
  const slider = byId("slider");
  if (nearest(LOGITS, Number(slider.value)) !== state.index) slider.value = String(LOGITS[state.index]);
  slider.setAttribute("aria-valuetext", `${shownP(threshold)}, ${words}`);
  const at = (index) => `${(50 * (LOGITS[index] + LOGIT_END)) / LOGIT_END}%`;
  slider.style.setProperty("--at", at(state.index));
  slider.style.setProperty("--end", state.direction === "middle" ? at(state.upper) : "100%");
  slider.closest(".controls").classList.toggle("lower", state.direction === "lower");
  slider.closest(".controls").classList.toggle("weights", state.mode === "weights");
  byId("movement")?.classList.toggle("hidden", state.mode === "weights");
  if (document.activeElement !== byId("threshold")) byId("threshold").value = String(threshold);
  const upper = byId("upper");
  upper?.classList.toggle("hidden", state.direction !== "middle");
  if (upper && state.upper !== null && document.activeElement !== upper) upper.value = String(GRID[state.upper]);
  byId("kept").textContent = words;
  summary();
}

/** Move the threshold, and the upper one ahead of it. */
function setIndex(index) {
  const most = GRID.length - (state.direction === "middle" ? 2 : 1);
  state.index = Math.max(0, Math.min(most, index));
  if (state.upper !== null) state.upper = Math.max(state.upper, state.index + 1);
  schedule();
}

function setDirection(direction) {
  state.direction = direction;
  if (direction === "middle") {
    state.upper ??= nearest(GRID, Math.max(0.9, (1 + GRID[state.index]) / 2));
    setIndex(state.index);
  }
  schedule();
}

/** Sorting follows the threshold when it comes to rest, so that examples do not jump under the pointer. */
function settle() {
  if (!state.order.startsWith("kept") && !state.order.startsWith("moved")) return;
  choose();
  renderExamples();
}

function sliderKeys(event) {
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -GRID.length, End: GRID.length };
  if (!(event.key in steps)) return;
  event.preventDefault();
  setIndex(state.index + steps[event.key]);
  byId("slider").value = String(LOGITS[state.index]);
  settle();
}

function makeDraggable(id) {
  const place = byId(id);
  place.classList.add("draggable");
  const move = (event) => {
    if (event.buttons === 0 && event.type === "pointermove") return;
    const area = place.getBoundingClientRect();
    const share = (event.clientX - area.left - MARGIN.left) / (area.width - MARGIN.left - MARGIN.right);
    setIndex(nearest(LOGITS, (2 * share - 1) * LOGIT_END));
    byId("slider").value = String(LOGITS[state.index]);
  };
  place.addEventListener("pointerdown", (event) => { place.setPointerCapture(event.pointerId); move(event); });
  place.addEventListener("pointermove", move);
  place.addEventListener("pointerup", settle);
}

// ---- The view in the address ----

const START = { ...state };
const choices = (id) => [...(byId(id)?.querySelectorAll("option") ?? [])].map((option) => option.value);

/** Put what differs from the page's start into the address. */
function remember() {
  const changed = (name, value = state[name]) => (state[name] === START[name] ? null : String(value));
  ADDRESS.set({
    threshold: changed("index", GRID[state.index]), upper: state.direction === "middle" ? changed("upper", GRID[state.upper]) : null,
    keep: changed("direction"), show: changed("mode"), view: changed("view"), search: changed("query"), order: changed("order"),
    page: state.page === 0 ? null : String(state.page + 1), row: state.row === null ? null : String(state.row),
  });
}

/** Take the view from the address; what it does not say, or says wrongly, stays as it is. */
function recall() {
  const number = (name, least, most) => {
    const value = ADDRESS.get(name) === null ? NaN : Number(ADDRESS.get(name));
    return value >= least && value <= most ? value : null;
  };
  const oneOf = (name, known) => (known.includes(ADDRESS.get(name)) ? ADDRESS.get(name) : null);
  const among = (id) => [...(byId(id)?.querySelectorAll("input") ?? [])].map((input) => input.value);
  const [threshold, upper] = [number("threshold", 0, 1), number("upper", 0, 1)];
  if (threshold !== null) state.index = nearest(GRID, threshold);
  if (upper !== null) state.upper = nearest(GRID, upper);
  setDirection(oneOf("keep", among("direction")) ?? state.direction);
  state.mode = oneOf("show", among("mode")) ?? state.mode;
  state.view = oneOf("view", among("view")) ?? state.view;
  state.order = oneOf("order", choices("order")) ?? state.order;
  state.query = ADDRESS.get("search") ?? "";
  state.page = (number("page", 1, 1e6) ?? 1) - 1;
  state.row = number("row", 0, Number.MAX_SAFE_INTEGER);
  for (const name of ["direction", "mode", "view"]) {
    const input = [...(byId(name)?.querySelectorAll("input") ?? [])].find((found) => found.value === state[name]);
    if (input) input.checked = true;
  }
  byId("search").value = state.query;
  byId("order").value = state.order;
}

// ---- Controls ----

function newList() {
  state.page = 0;
  choose();
  renderExamples();
  remember();
}

function search(text) {
  byId("search").value = text;
  state.query = text;
  newList();
  byId("examples").scrollIntoView();
}

function onChange(id, event, act) {
  byId(id)?.addEventListener(event, act);
}

function listenToThreshold() {
  onChange("slider", "input", () => setIndex(nearest(LOGITS, Number(byId("slider").value))));
  onChange("slider", "change", settle);
  onChange("slider", "keydown", sliderKeys);
  const typed = (id, set, shown) => onChange(id, "change", (event) => {
    const wanted = Number(event.target.value);
    if (event.target.value !== "" && wanted >= 0 && wanted <= 1) set(nearest(GRID, wanted));
    event.target.value = String(GRID[state[shown]]);
    byId("slider").value = String(LOGITS[state.index]);
    settle();
  });
  typed("threshold", setIndex, "index");
  typed("upper", (index) => { state.upper = Math.max(index, state.index + 1); schedule(); }, "upper");
  for (const id of ["histogram", "curve"]) makeDraggable(id);
  onChange("direction", "change", (event) => { setDirection(event.target.value); settle(); });
  onChange("mode", "change", (event) => { state.mode = event.target.value; heatLegend(); choose(); renderExamples(); schedule(); });
}

function listenToExamples() {
  onChange("search", "input", (event) => { state.query = event.target.value; newList(); });
  onChange("order", "change", (event) => { state.order = event.target.value; newList(); });
  onChange("view", "change", (event) => { state.view = event.target.value; heatLegend(); settle(); schedule(); });
  for (const id of ["kinds", "struck"]) onChange(id, "change", heatLegend);
  onChange("template", "change", renderExamples);
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    onChange(id, "click", () => { state.page += step; renderExamples(); remember(); byId("examples").scrollIntoView(); });
  }
  const list = byId("list");
  list.addEventListener("pointerover", (event) => { const span = tokenOf(event); if (span) showTip(span); });
  list.addEventListener("pointerleave", hideTip);
  list.addEventListener("click", (event) => { const span = tokenOf(event); if (span) { goTo(span); showTip(span); } else hideTip(); });
  list.addEventListener("focusin", (event) => { const span = tokenOf(event); if (span) showTip(span); });
  list.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", tokenKeys);
  addEventListener("scroll", () => { if (tipOf !== null && tipOf !== document.activeElement) hideTip(); }, { passive: true });
}

function listenToTables() {
  onChange("unit", "change", (event) => { state.unit = event.target.value; state.rows = 15; sortOptions(); tokenTable(); });
  for (const name of ["sort", "kind", "rank"]) onChange(name, "change", (event) => { state[name] = event.target.value; tokenTable(); });
  onChange("more", "click", () => { state.rows += 30; tokenTable(); });
  // The address says what is shown, so going to a section must not be written there.
  for (const link of document.querySelectorAll(".controls nav a")) {
    link.addEventListener("click", (event) => { event.preventDefault(); document.querySelector(link.getAttribute("href")).scrollIntoView(); });
  }
}

/** Text first: the figures below are drawn when the examples stand. */
(function start() {
  recall();
  sortOptions();
  byId("slider").value = String(LOGITS[state.index]);
  heatLegend();
  systemOnce();
  listenToThreshold();
  listenToExamples();
  listenToTables();
  choose();
  renderExamples();
  renderThreshold();
  if (state.row !== null) showRow(state.row);
  watchScreen();
  new ResizeObserver(schedule).observe(byId("main"));
  schedule();
})();
