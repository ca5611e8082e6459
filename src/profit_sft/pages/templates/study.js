// Draws the differences and the training curves of a study. The tables stand in the page already.
const state = { model: DATA.models[0], hidden: new Set() };

/** Return about `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

const signed = (points) => `${points > 0 ? "+" : points < 0 ? "−" : ""}${Math.abs(points).toFixed(1)}`;

/** The width to draw at, so that text keeps its size on a phone. */
const widthOf = (node) => Math.max(280, node.clientWidth || 520);

function drawForest() {
  const place = byId("forest");
  if (!place) return;
  const rows = state.model.comparisons;
  const width = widthOf(place);
  const narrow = width < 560;
  const row = narrow ? 44 : 30;
  const top = 8;
  const left = narrow ? 10 : Math.min(300, 20 + 7.2 * Math.max(0, ...rows.map(({ label }) => label.length)));
  const right = width - (narrow ? 10 : 170);
  const bottom = top + row * rows.length;
  const ends = rows.flatMap(({ low, high }) => [100 * low, 100 * high]);
  const low = Math.min(-1, ...ends) * 1.04;
  const high = Math.max(1, ...ends) * 1.04;
  const x = (points) => left + ((points - low) / (high - low)) * (right - left);
  const label = `Difference from the baseline in points: ${rows.map(({ verdict }) => verdict).join("; ")}`;
  const chart = svg("svg", { class: "chart forest", viewBox: `0 0 ${width} ${bottom + 26}`, role: "img", "aria-label": label });
  for (const tick of ticks(low, high, narrow ? 4 : 8)) {
    chart.append(
      svg("line", { class: tick === 0 ? "zero" : "rule", x1: x(tick), x2: x(tick), y1: top, y2: bottom }),
      svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, tick > 0 ? `+${tick}` : String(tick).replace("-", "−")));
  }
  rows.forEach((entry, index) => {
    const y = top + row * (index + 0.5) + (narrow ? 9 : 0);
    const [word, here] = entry.shown === "no difference" ? ["none", ""] : entry.shown.split(" ");
    const look = word === "none" ? "" : `${word} ${here ? "" : "shown"}`;
    const [at, from, to] = [entry.difference, entry.low, entry.high].map((share) => 100 * share);
    const name = narrow ? { x: left, y: y - 14 } : { x: left - 14, y: y + 4, "text-anchor": "end" };
    const group = svg("g", { class: look },
      svg("title", {}, entry.verdict),
      svg("text", { class: "name", ...name }, entry.label),
      svg("line", { class: "whisker", x1: x(from), x2: x(to), y1: y, y2: y }),
      svg("circle", { class: "point", cx: x(at), cy: y, r: 5 }),
      svg("text", { class: "figures", x: width, y: y + 4, "text-anchor": "end" }, `${signed(at)}  (${signed(from)} to ${signed(to)})`));
    chart.append(group);
  });
  place.replaceChildren(chart);
}

const shownVariants = () => state.model.variants.filter(({ name, curves }) => !state.hidden.has(name) && Object.values(curves).some((points) => points.length));

/** Draw one metric of all variants that are shown, by step or, on a logarithmic scale, by token budget. */
function drawCurve(place, { name, title, budgets }) {
  const variants = shownVariants().filter(({ curves }) => curves[name].length);
  const width = widthOf(place);
  const height = 230;
  const [left, right, top, bottom] = [46, width - 10, 12, height - 26];
  const points = variants.flatMap(({ curves }) => curves[name]);
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, by ${budgets ? "token budget" : "optimizer step"}` });
  place.chart = null;
  if (points.length) {
    const steps = points.map(([step]) => step);
    const values = points.map(([, value]) => value);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (high - low < 1e-9) [low, high] = [low - 0.5, high + 0.5];
    const scale = budgets ? Math.log2 : (step) => step;
    const x = (step) => left + (last > first ? (scale(step) - scale(first)) / (scale(last) - scale(first)) : 0.5) * (right - left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    for (const tick of ticks(low, high, 4)) {
      chart.append(
        svg("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, budgets || name === "kept_share" || name === "mean_token_accuracy" ? `${Math.round(100 * tick)}%` : String(tick)));
    }
    chart.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    for (const tick of budgets || ticks(first, last, 6).filter(Number.isInteger)) chart.append(svg("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, String(tick)));
    for (const variant of variants) {
      const line = variant.curves[name].map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      chart.append(svg("polyline", { class: `curve look-${variant.look}${variant.dashed ? " dashed" : ""}`, "data-variant": variant.name, points: line }));
    }
    place.chart = { variants, x, y, width };
  }
  place.replaceChildren(chart);
}

/** Let the lines of one variant stand out in all charts; of none when null. */
function emphasize(name) {
  for (const line of document.querySelectorAll("#curves polyline, #budgets polyline")) {
    line.classList.toggle("faded", name !== null && line.dataset.variant !== name);
    line.classList.toggle("strong", line.dataset.variant === name);
  }
}

/** Say which line is nearest to the pointer, and its figures there. */
function readCurve(place, reading, { name, budgets }, event) {
  if (!place.chart) return;
  const box = place.getBoundingClientRect();
  const scale = place.chart.width / box.width;
  const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  let best = null;
  for (const variant of place.chart.variants) {
    for (const [step, value] of variant.curves[name]) {
      const distance = Math.hypot(place.chart.x(step) - px, place.chart.y(value) - py);
      if (best === null || distance < best.distance) best = { distance, variant, step, value };
    }
  }
  emphasize(best.variant.name);
  reading.textContent = `${best.variant.name}, ${budgets ? `${best.step} tokens` : `step ${best.step}`}: ${best.value.toPrecision(4)}`;
}

const places = DATA.curves.map((curve) => {
  const place = el("div");
  const reading = el("p", { class: "reading", "aria-hidden": "true" });
  byId(curve.budgets ? "budgets" : "curves").append(el("figure", { class: "card" }, el("h3", {}, curve.title), place, reading));
  place.addEventListener("pointermove", (event) => readCurve(place, reading, curve, event));
  place.addEventListener("pointerleave", () => {
    emphasize(null);
    reading.textContent = "";
  });
  return { place, curve };
});

function drawCurves() {
  for (const { place, curve } of places) drawCurve(place, curve);
}

function drawLegend() {
  const buttons = state.model.variants.filter(({ curves }) => Object.values(curves).some((points) => points.length)).map((variant) => {
    const line = svg("svg", { width: 22, height: 8, "aria-hidden": "true" }, svg("path", { class: `key-line look-${variant.look}${variant.dashed ? " dashed" : ""}`, d: "M1 4H21" }));
    const button = el("button", { type: "button", "aria-pressed": String(!state.hidden.has(variant.name)) }, line, variant.name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(variant.name)) state.hidden.add(variant.name);
      button.setAttribute("aria-pressed", String(!state.hidden.has(variant.name)));
      drawCurves();
    });
    button.addEventListener("pointerenter", () => emphasize(variant.name));
    button.addEventListener("pointerleave", () => emphasize(null));
    return el("li", {}, button);
  });
  byId("variants").replaceChildren(...buttons);
}

function drawAll() {
  drawForest();
  drawLegend();
  drawCurves();
}

const choice = byId("model");
if (choice) {
  for (const { name } of DATA.models) choice.append(el("option", { value: name }, name));
  choice.addEventListener("change", () => {
    state.model = DATA.models.find(({ name }) => name === choice.value);
    state.hidden.clear();
    drawAll();
  });
}
new ResizeObserver(drawAll).observe(byId("main"));
