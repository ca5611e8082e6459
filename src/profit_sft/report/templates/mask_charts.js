// Charts and tables of the mask page, and what its controls do.
const FIGURES = DATA.figures;
const LOGIT_END = 10; // as the bins of the figures
const MARGIN = { left: 40, right: 8 }; // of a chart, pixels
const TICKS = [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];
const logit = (p) => Math.max(-LOGIT_END, Math.min(LOGIT_END, Math.log(p / (1 - p))));
const LOGITS = GRID.map(logit);
const KIND_WORDS = { none: "neither" };
const KIND_ORDER = [1, 2, 0]; // core, style, none: of DATA.kinds

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
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

// ---- Charts ----

/** A drawing as wide as its place, so that its text keeps its size on a phone. */
function canvas(id, height, label) {
  const place = byId(id);
  const width = Math.max(240, place.clientWidth);
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  place.replaceChildren(drawing);
  return { drawing, width, height, left: MARGIN.left, right: width - MARGIN.right, top: 18, bottom: height - 22 };
}

const across = (area) => (value) => area.left + ((value + LOGIT_END) / (2 * LOGIT_END)) * (area.right - area.left);

function probabilityAxis(area) {
  const x = across(area);
  const few = area.width < 420;
  for (const tick of TICKS) {
    if (few && (tick === 0.0001 || tick === 0.9999 || tick === 0.01 || tick === 0.99)) continue;
    area.drawing.append(
      svg("line", { class: "rule", x1: x(logit(tick)), x2: x(logit(tick)), y1: area.bottom, y2: area.bottom + 4 }),
      svg("text", { x: x(logit(tick)), y: area.height - 6, "text-anchor": "middle" }, String(tick)));
  }
  area.drawing.append(svg("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }));
}

function shareAxis(area, most = 1) {
  const y = (share) => area.bottom - (share / most) * (area.bottom - area.top);
  for (const part of [0.25, 0.5, 0.75, 1]) {
    const share = part * most;
    area.drawing.append(
      svg("line", { class: "rule", x1: area.left, x2: area.right, y1: y(share), y2: y(share) }),
      svg("text", { x: area.left - 6, y: y(share) + 4, "text-anchor": "end" }, `${Number((100 * share).toPrecision(3))}%`));
  }
  return y;
}

function thresholdLine(area, label) {
  const at = across(area)(LOGITS[state.index]);
  const anchor = at > (area.left + area.right) / 2 ? "end" : "start";
  area.drawing.append(
    svg("line", { class: "threshold", x1: at, x2: at, y1: area.top - 6, y2: area.bottom }),
    svg("text", { class: "value", x: at + (anchor === "end" ? -6 : 6), y: area.top - 6, "text-anchor": anchor }, label));
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

function histogram() {
  const area = canvas("histogram", 220, "Histogram of the label tokens by probability, with the threshold");
  const edges = FIGURES.histogram_edges;
  const total = FIGURES.total.count;
  const sums = FIGURES.histogram.map((kinds) => edges.slice(1).map((_, bin) => kinds.reduce((sum, counts) => sum + counts[bin], 0)));
  const most = niceShare(Math.max(...sums.flat()) / total);
  const y = shareAxis(area, most);
  const x = across(area);
  const clips = [area.left, x(LOGITS[state.index]), area.right];
  const sides = clips.slice(1).map((end, side) => {
    const masked = (side === 0) === (state.direction === "higher");
    const clip = svg("clipPath", { id: `side-${side}` }, svg("rect", { x: clips[side], y: 0, width: Math.max(0, end - clips[side]), height: area.height }));
    const group = svg("g", { "clip-path": `url(#side-${side})`, class: masked ? "masked-side" : "kept-side" });
    area.drawing.append(clip, group);
    return group;
  });
  edges.slice(1).forEach((edge, bin) => {
    const [start, end] = [x(logit(edges[bin])), x(logit(edge))];
    let below = 0;
    const kinds = FIGURES.histogram[0];
    for (const kind of kinds.length === 1 ? [0] : KIND_ORDER) {
      const height = area.bottom - y(kinds[kind][bin] / total);
      const name = kinds.length === 1 ? "core" : KIND_NAMES[kind];
      const bar = { class: `bar ${name}`, x: start + 0.5, width: Math.max(0.5, end - start - 1), y: area.bottom - below - height, height };
      for (const side of sides) side.append(svg("rect", bar));
      below += height;
    }
  });
  if (COMPARED) {
    const steps = sums[1].flatMap((sum, bin) => [`${x(logit(edges[bin]))},${y(sum / total)}`, `${x(logit(edges[bin + 1]))},${y(sum / total)}`]);
    area.drawing.append(svg("polyline", { class: "line second", points: steps.join(" ") }));
  }
  probabilityAxis(area);
  thresholdLine(area, `threshold ${shownP(GRID[state.index])}`);
}

/** Round up to a share that makes a good end of an axis. */
function niceShare(share) {
  const steps = [0.02, 0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8, 1];
  return steps.find((step) => step >= share) ?? 1;
}

function curvePoints(area, y, group, set) {
  const x = across(area);
  const counts = new Float64Array(GRID.length + 2);
  for (let at = 0; at < group.cells[set].length; at += 2) counts[group.cells[set][at]] += group.cells[set][at + 1];
  let above = 0;
  const points = [];
  for (let index = GRID.length - 1; index >= 0; index -= 1) {
    above += counts[index + 1];
    const kept = state.direction === "higher" ? above : group.count - above;
    points.push(`${x(LOGITS[index])},${y(kept / group.count)}`);
  }
  return points.join(" ");
}

function curve() {
  const area = canvas("curve", 220, "Kept share against the threshold");
  const y = shareAxis(area);
  probabilityAxis(area);
  if (!COMPARED) {
    for (const group of FIGURES.by_kind.filter((group) => group.kind !== "none")) {
      area.drawing.append(svg("polyline", { class: `curve-${group.kind}`, points: curvePoints(area, y, group, 0) }));
    }
  }
  SETS.forEach((_, set) => area.drawing.append(svg("polyline", { class: set === 1 ? "line second" : "line", points: curvePoints(area, y, FIGURES.total, set) })));
  const shares = SETS.map((_, set) => keptOf(FIGURES.total, set) / FIGURES.total.count);
  thresholdLine(area, shares.map(percent).join(" → "));
  shares.forEach((share, set) =>
    area.drawing.append(svg("circle", { class: set === 1 ? "dot second" : "dot", cx: across(area)(LOGITS[state.index]), cy: y(share), r: 4 })));
}

function positions() {
  const area = canvas("positions", 230, "Kept share and mean probability by place in the answer");
  const y = shareAxis(area);
  const groups = FIGURES.by_position;
  const step = (area.right - area.left) / groups.length;
  const x = (index) => area.left + step * (index + 0.5);
  const every = Math.ceil(52 / step);
  groups.forEach((group, index) => {
    if (index % every === 0) area.drawing.append(svg("text", { x: x(index), y: area.height - 6, "text-anchor": "middle" }, group.label));
  });
  area.drawing.append(svg("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }));
  const draw = (share, look, dot) => {
    area.drawing.append(svg("polyline", { class: look, points: groups.map((group, index) => `${x(index)},${y(share(group))}`).join(" ") }));
    groups.forEach((group, index) => area.drawing.append(
      svg("circle", { class: dot, cx: x(index), cy: y(share(group)), r: 3 },
        svg("title", {}, `tokens ${group.label}: ${percent(share(group))} of ${whole(group.count)}`))));
  };
  if (!COMPARED) draw((group) => group.p[0], "line p", "dot p");
  SETS.forEach((_, set) => draw((group) => keptOf(group, set) / group.count, set === 1 ? "line second" : "line", set === 1 ? "dot second" : "dot"));
}

function density() {
  const place = byId("density");
  const area = canvas("density", Math.min(340, Math.max(240, place.clientWidth * 0.7)), "Probability before, across, and after, upward");
  const counts = FIGURES.density;
  const size = counts.length;
  const most = Math.max(...counts.flat());
  area.bottom -= 14;
  const cellWidth = (area.right - area.left) / size;
  const cellHeight = (area.bottom - area.top) / size;
  counts.forEach((line, before) => line.forEach((count, after) => {
    if (count === 0) return;
    area.drawing.append(svg("rect", { class: "cell", x: area.left + before * cellWidth + 0.5, y: area.bottom - (after + 1) * cellHeight + 0.5, width: cellWidth - 1, height: cellHeight - 1, "fill-opacity": 0.08 + 0.92 * Math.sqrt(count / most), rx: 1.5 }, svg("title", {}, `${whole(count)} tokens`)));
  }));
  const place01 = (p) => (logit(p) + LOGIT_END) / (2 * LOGIT_END);
  const x = (p) => area.left + place01(p) * (area.right - area.left);
  const y = (p) => area.bottom - place01(p) * (area.bottom - area.top);
  for (const tick of [0.001, 0.1, 0.5, 0.9, 0.999]) {
    area.drawing.append(
      svg("text", { x: x(tick), y: area.bottom + 15, "text-anchor": "middle" }, String(tick)),
      svg("text", { x: area.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const threshold = GRID[state.index];
  area.drawing.append(
    svg("text", { x: (area.left + area.right) / 2, y: area.height - 4, "text-anchor": "middle" }, "p before"),
    svg("text", { x: area.left, y: area.top - 8, "text-anchor": "start" }, "p after"),
    svg("line", { class: "rule", x1: area.left, x2: area.right, y1: area.bottom, y2: area.top }),
    svg("line", { class: "threshold", x1: x(threshold), x2: x(threshold), y1: area.top, y2: area.bottom }),
    svg("line", { class: "threshold", x1: area.left, x2: area.right, y1: y(threshold), y2: y(threshold) }));
}

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
  const head = ["sort", ...(KINDS ? ["kind"] : []), "tokens", COMPARED ? "kept before → after" : "kept", "mean p"];
  byId("sort-table").tHead.replaceChildren(el("tr", {}, ...head.map((name, column) => el("th", { scope: "col", class: `${column > (KINDS ? 1 : 0) ? "number" : ""} ${name === "mean p" ? "optional" : ""}` }, name))));
  const groups = [...FIGURES.by_sort].sort((one, other) => other.count - one.count);
  byId("sort-table").tBodies[0].replaceChildren(...groups.map((group) => {
    const shares = SETS.map((_, set) => keptOf(group, set) / group.count);
    return el("tr", {}, el("th", { scope: "row" }, group.sort), ...(KINDS ? [el("td", { class: "dim" }, KIND_WORDS[group.kind] ?? group.kind)] : []),
      el("td", { class: "number" }, whole(group.count)), el("td", { class: "number" }, arrow(shares.map(percent)), meter(shares[shares.length - 1])),
      el("td", { class: "number optional" }, arrow(group.p.map(shownP))));
  }));
}

function renderFigures() {
  histogram();
  curve();
  positions();
  if (COMPARED) { movement(); density(); }
  tokenTable();
  sortTable();
}

function chartLegends() {
  const key = (look, words) => el("li", {}, el("span", { class: `key ${look}` }), words);
  const stroke = (look, words) => el("li", {}, el("span", { class: `stroke ${look}` }), words);
  const kinds = KINDS ? [key("core", "core"), key("style", "style"), key("none", "neither")] : [];
  byId("histogram-legend").replaceChildren(...kinds, ...(COMPARED ? [...(KINDS ? [] : [key("core", "before")]), stroke("second", KINDS ? "after (bars: before)" : "after")] : []),
    el("li", {}, "pale: masked"));
  const two = [stroke("", "before"), stroke("second", "after")];
  byId("curve-legend").replaceChildren(...(COMPARED ? two : [stroke("", "all tokens"), ...(KINDS ? [stroke("curve-core", "core"), stroke("curve-style", "style")] : [])]));
  byId("positions-legend").replaceChildren(...(COMPARED ? two : [stroke("", "kept share"), stroke("p", "mean p")]), el("li", {}, "across: which token of the answer"));
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
