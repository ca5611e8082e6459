// Tables of the mask page, when what is drawn, and what the controls do.
const KIND_WORDS = { none: "neither" };

function movement() {
  const found = moved(FIGURES.total);
  const total = FIGURES.total.count;
  for (const [id, count] of [["kept_kept", found.kk], ["kept_masked", found.km], ["masked_kept", found.mk], ["masked_masked", found.mm]]) {
    byId(id).replaceChildren(whole(count), el("small", {}, percent(count / total)));
  }
  byId("movement-words").textContent = `${percent((found.km + found.mk) / total)} of the label tokens changed sides: ` +
    `${whole(found.mk)} came in, ${whole(found.km)} went out.`;
  const groups = FIGURES.by_kind.length > 0 ? FIGURES.by_kind : FIGURES.by_sort;
  byId("movement-table").tHead.replaceChildren(el("tr", {}, ...["", "kept before → after", "in", "out"].map((name, column) =>
    el(name === "" ? "td" : "th", { ...(name === "" ? {} : { scope: "col" }), class: column > 0 ? "number" : "" }, name))));
  byId("movement-table").tBodies[0].replaceChildren(...groups.map((group) => {
    const { km, mk } = moved(group);
    const shares = SETS.map((_, set) => percent(keptOf(group, set) / group.count));
    return el("tr", {}, el("th", { scope: "row" }, KIND_WORDS[group.label] ?? group.label),
      ...[arrow(shares), whole(mk), whole(km)].map((text) => el("td", { class: "number" }, text)));
  }));
}

// ---- Tables ----

const shareCell = (share, second = false) => el("td", { class: "number" }, percent(share), meter(share, second));
const arrow = (values) => values.join(" → ");

const RANKS = {
  masked: (group) => group.count - keptOf(group, SETS.length - 1),
  share: (group) => (group.count < 5 ? -1 : 1 - keptOf(group, SETS.length - 1) / group.count),
  count: (group) => group.count,
  moved: (group) => { const found = moved(group); return found.km + found.mk; },
};

/** Offer the sorts there are among tokens, or among words. */
function sortOptions() {
  const sorts = new Set(FIGURES[state.unit].map((group) => group.sort));
  state.sort = "";
  byId("sort").replaceChildren(el("option", { value: "" }, "all sorts"), ...[...sorts].sort().map((sort) => el("option", { value: sort }, sort)));
}

function tokenTable() {
  const last = SETS.length - 1;
  const groups = FIGURES[state.unit].filter((group) =>
    (state.sort === "" || group.sort === state.sort) && (state.kind === "" || group.kind === state.kind));
  const ranked = groups.map((group) => [RANKS[state.rank](group), group]).filter(([value]) => value > 0);
  ranked.sort(([one, first], [other, second]) => other - one || second.count - first.count);
  const head = ["token", "sort", ...(KINDS ? ["kind"] : []), "tokens", ...(COMPARED ? ["out", "in"] : []), "masked", "share", "mean p"];
  head[0] = state.unit === "tokens" ? "token" : "word";
  const optional = new Set(["sort", "mean p"]);
  const words = { out: "kept before, masked after", in: "masked before, kept after", tokens: "how many there are", share: "masked of all there are" };
  byId("token-table").tHead.replaceChildren(el("tr", {}, ...head.map((name, column) => el("th", {
    scope: "col", class: [column > (KINDS ? 2 : 1) ? "number" : "", optional.has(name) ? "optional" : ""].join(" "), ...(name in words ? { title: words[name] } : {}),
  }, name))));
  byId("token-table").tBodies[0].replaceChildren(...ranked.slice(0, state.rows).map(([, group]) => {
    const masked = group.count - keptOf(group, last);
    const button = el("button", { type: "button", title: "Search the examples for it" }, visible(group.label));
    button.addEventListener("click", () => search(group.label.trim() || group.label));
    const cells = [el("th", { scope: "row", class: "word" }, button), el("td", { class: "dim optional" }, group.sort)];
    if (KINDS) cells.push(el("td", { class: "dim" }, KIND_WORDS[group.kind] ?? group.kind));
    cells.push(el("td", { class: "number" }, whole(group.count)));
    if (COMPARED) { const found = moved(group); cells.push(el("td", { class: "number" }, whole(found.km)), el("td", { class: "number" }, whole(found.mk))); }
    cells.push(el("td", { class: "number" }, whole(masked)), shareCell(masked / group.count, true));
    cells.push(el("td", { class: "number optional" }, arrow(group.p.map(shownP))));
    return el("tr", {}, ...cells);
  }));
  byId("more").classList.toggle("hidden", ranked.length <= state.rows);
}

function sortTable() {
  const head = ["sort", ...(KINDS ? ["kind"] : []), "tokens", ...(COMPARED ? ["kept before → after"] : ["kept", "mean p"])];
  byId("sort-table").tHead.replaceChildren(el("tr", {}, ...head.map((name, column) => el("th", { scope: "col", class: `${column > (KINDS ? 1 : 0) ? "number" : ""} ${name === "mean p" ? "optional" : ""}` }, name))));
  const groups = [...FIGURES.by_sort].sort((one, other) => other.count - one.count);
  byId("sort-table").tBodies[0].replaceChildren(...groups.map((group) => {
    const shares = SETS.map((_, set) => keptOf(group, set) / group.count);
    return el("tr", {}, el("th", { scope: "row" }, group.sort), ...(KINDS ? [el("td", { class: "dim" }, KIND_WORDS[group.kind] ?? group.kind)] : []),
      el("td", { class: "number" }, whole(group.count)), el("td", { class: "number" }, arrow(shares.map(percent)), ...(COMPARED ? [] : [meter(shares[0])])),
      ...(COMPARED ? [] : [el("td", { class: "number optional" }, shownP(group.p[0]))]));
  }));
}

// ---- Drawing ----

// What is on the screen follows the threshold at once; the rest is drawn when the threshold has come to rest.
const DRAWN = {
  probabilities: [histogram, curve], movement: COMPARED ? [movement, density] : [], tokens: [tokenTable], places: [positions, sortTable],
};
const onScreen = new Set(Object.keys(DRAWN));
const stale = new Set();
let rest = 0;

function draw(section) {
  stale.delete(section);
  for (const figure of DRAWN[section]) figure();
}

function renderFigures() {
  for (const section of Object.keys(DRAWN)) {
    if (onScreen.has(section)) draw(section);
    else stale.add(section);
  }
  clearTimeout(rest);
  rest = setTimeout(() => [...stale].forEach(draw), 150);
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
  const shares = SETS.map((_, set) => keptOf(FIGURES.total, set) / FIGURES.total.count);
  const words = `${shares.map(percent).join(" → ")} kept`;
  const slider = byId("slider");
  if (nearest(LOGITS, Number(slider.value)) !== state.index) slider.value = String(LOGITS[state.index]);
  slider.setAttribute("aria-valuetext", `${shownP(threshold)}, ${words}`);
  slider.style.setProperty("--at", `${(50 * (LOGITS[state.index] + LOGIT_END)) / LOGIT_END}%`);
  slider.closest(".controls").classList.toggle("lower", state.direction === "lower");
  if (document.activeElement !== byId("threshold")) byId("threshold").value = String(threshold);
  byId("kept").textContent = words;
}

function setIndex(index) {
  state.index = Math.max(0, Math.min(GRID.length - 1, index));
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

// ---- Controls ----

function search(text) {
  byId("search").value = text;
  state.query = text;
  state.page = 0;
  choose();
  renderExamples();
  byId("examples").scrollIntoView();
}

function onChange(id, event, act) {
  byId(id)?.addEventListener(event, act);
}

function listen() {
  onChange("slider", "input", () => setIndex(nearest(LOGITS, Number(byId("slider").value))));
  onChange("slider", "change", settle);
  onChange("slider", "keydown", sliderKeys);
  onChange("threshold", "change", (event) => {
    const wanted = Number(event.target.value);
    if (event.target.value !== "" && wanted >= 0 && wanted <= 1) setIndex(nearest(GRID, wanted));
    event.target.value = String(GRID[state.index]);
    byId("slider").value = String(LOGITS[state.index]);
    settle();
  });
  for (const id of ["histogram", "curve"]) makeDraggable(id);
  onChange("direction", "change", (event) => { state.direction = event.target.value; settle(); schedule(); });
  onChange("search", "input", (event) => { state.query = event.target.value; state.page = 0; choose(); renderExamples(); });
  onChange("order", "change", (event) => { state.order = event.target.value; state.page = 0; choose(); renderExamples(); });
  onChange("view", "change", (event) => { state.view = event.target.value; heatLegend(); settle(); schedule(); });
  onChange("kinds", "change", (event) => { byId("list").classList.toggle("kinds", event.target.checked); heatLegend(); });
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    onChange(id, "click", () => { state.page += step; renderExamples(); byId("examples").scrollIntoView(); });
  }
  onChange("unit", "change", (event) => { state.unit = event.target.value; state.rows = 15; sortOptions(); tokenTable(); });
  for (const name of ["sort", "kind", "rank"]) onChange(name, "change", (event) => { state[name] = event.target.value; tokenTable(); });
  onChange("more", "click", () => { state.rows += 30; tokenTable(); });
  const list = byId("list");
  list.addEventListener("pointerover", (event) => { const span = tokenOf(event); if (span) showTip(span); });
  list.addEventListener("pointerleave", hideTip);
  list.addEventListener("click", (event) => { const span = tokenOf(event); if (span) { goTo(span); showTip(span); } else hideTip(); });
  list.addEventListener("focusin", (event) => { const span = tokenOf(event); if (span) showTip(span); });
  list.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", tokenKeys);
  addEventListener("scroll", () => { if (tipOf !== null && tipOf !== document.activeElement) hideTip(); }, { passive: true });
  new ResizeObserver(schedule).observe(byId("main"));
  watchScreen();
}

(function start() {
  sortOptions();
  document.querySelector(`#direction input[value="${state.direction}"]`).checked = true;
  byId("slider").value = String(LOGITS[state.index]);
  chartLegends();
  heatLegend();
  listen();
  choose();
  renderExamples();
  renderThreshold();
  renderFigures();
})();
