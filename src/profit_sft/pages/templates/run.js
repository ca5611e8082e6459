// Draws the curves of a run, or of several, and the rows with their tokens. Words and tables stand in the page already.
const state = { smoothing: 0, at: null };
const HEIGHT = 230;

/** Return about `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * (1 - 1e-9));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function shown(value, form) {
  if (value === null) return "not finite";
  if (form === "share") return `${(100 * value).toFixed(1)}%`;
  if (form === "count") return Math.round(value).toLocaleString("en");
  return form === "tiny" ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const onAxis = (tick, form) => form === "share" ? `${Number((100 * tick).toPrecision(6))}%` : form === "count" ? tick.toLocaleString("en") : Math.abs(tick) > 0 && Math.abs(tick) < 1e-3 ? tick.toExponential(0) : String(tick);

/** A running mean that forgets; values that are not finite stay a gap. */
function smoothed(points) {
  if (!state.smoothing) return points;
  let mean = null;
  return points.map(([step, value]) => {
    if (value === null) return [step, null];
    mean = mean === null ? value : state.smoothing * mean + (1 - state.smoothing) * value;
    return [step, mean];
  });
}

/** The marker of a look, around a point. */
function marker(look, x, y) {
  const d = [
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "m-4 -4h8v8h-8z", "m0 -5l5 9h-10z", "m0 -5l5 5l-5 5l-5 -5z", "m0 5l5 -9h-10z", "m-1.5 -5h3v10h-3zm-3.5 3.5h10v3h-10z",
  ][look % 6];
  return svg("path", { class: "marker", d: `M${x} ${y}${d}` });
}

const runs = (points) => {
  const found = [[]];
  for (const point of points) point[1] === null ? found.push([]) : found.at(-1).push(point);
  return found.filter((part) => part.length);
};

/** Label the lines' ends, apart from each other. */
function endLabels(ends, top, bottom) {
  ends.sort((a, b) => a.y - b.y);
  let least = top + 4;
  for (const end of ends) least = (end.at = Math.max(end.y, least)) + 13;
  let most = bottom + 4;
  for (const end of [...ends].reverse()) most = (end.at = Math.min(end.at, most)) - 13;
}

function draw(place, chart, first, last) {
  const series = chart.series.map((entry) => ({ ...entry, drawn: smoothed(entry.points) }));
  const width = Math.max(280, place.clientWidth || 420);
  const several = series.length > 1;
  const longest = several ? Math.max(...series.map(({ name }) => name.length)) : 0;
  const room = several ? Math.min(width * 0.34, 12 + 6.2 * longest) : 10;
  const [left, right, top, bottom] = [52, width - room, 12, HEIGHT - 42];
  const values = series.flatMap(({ drawn }) => drawn.map(([, value]) => value)).filter((value) => value !== null);
  const label = `${chart.title}. ${series.map((entry) => `${entry.name}: ${shown(entry.points[0][1], chart.form)} at first, ${shown(entry.points.at(-1)[1], chart.form)} last`).join("; ")}`;
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
  place.setAttribute("aria-label", label);
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (high - low < 1e-9 * Math.max(1e-9, Math.abs(high))) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  [low, high] = [low - 0.03 * (high - low), high + 0.03 * (high - low)];
  const x = (step) => left + (last > first ? (step - first) / (last - first) : 0.5) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low, high, 4)) {
    picture.append(
      svg("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, onAxis(tick, chart.form)));
  }
  picture.append(
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("text", { x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "optimizer step"));
  for (const tick of last > first ? ticks(first, last, width < 400 ? 4 : 6).filter(Number.isInteger) : [first]) picture.append(svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
  for (const { step, kind, text } of DATA.marks) {
    if (kind === "checkpoint") picture.append(svg("path", { class: "checkpoint", d: `M${x(step)} ${bottom}l3.5 4l-3.5 4l-3.5 -4z` }, svg("title", {}, `checkpoint of step ${step}`)));
    else picture.append(svg("line", { class: "warning", x1: x(step), x2: x(step), y1: top, y2: bottom }), svg("path", { class: "warning-sign", d: `M${x(step)} ${top - 9}l5.5 10h-11z` }, svg("title", {}, `step ${step}: ${text}`)));
  }
  const ends = [];
  for (const entry of series) {
    const group = svg("g", { class: `look-${entry.look}` });
    for (const part of runs(entry.drawn)) {
      if (part.length > 1) group.append(svg("polyline", { class: `curve dash-${entry.look}`, points: part.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
      else group.append(marker(entry.look, x(part[0][0]), y(part[0][1])));
      for (let index = 1; several && part.length > 8 && index < 4; index += 1) {
        const [step, value] = part[Math.floor((index * part.length) / 4)];
        group.append(marker(entry.look, x(step), y(value)));
      }
    }
    const end = runs(entry.drawn).at(-1)?.at(-1);
    if (end) {
      group.append(marker(entry.look, x(end[0]), y(end[1])));
      ends.push({ name: entry.name, y: y(end[1]) });
    }
    picture.append(group);
  }
  if (several) {
    endLabels(ends, top, bottom);
    const most = Math.max(6, Math.floor((room - 10) / 6.2));
    for (const { name, at } of ends) picture.append(svg("text", { class: "end", x: right + 9, y: at + 4 }, name.length > most ? `${name.slice(0, most - 1)}…` : name));
  }
  const cursor = svg("line", { class: "cursor hidden", y1: top, y2: bottom });
  picture.append(cursor);
  place.replaceChildren(picture);
  Object.assign(place, { cursor, x, left, right, width, series });
}

const places = DATA.charts.map((chart) => {
  const place = el("div", { class: "plot", role: "img", tabindex: "0" });
  const reading = el("p", { class: "reading", "aria-live": "polite" });
  byId(chart.more ? "more-curves" : "curves").append(el("figure", { class: "card" }, el("h3", {}, chart.title), place, reading));
  const entry = { place, reading, chart };
  place.addEventListener("pointermove", (event) => {
    const box = place.getBoundingClientRect();
    read(nearest((event.clientX - box.left) * (place.width / box.width), place));
  });
  place.addEventListener("pointerleave", () => read(null));
  place.addEventListener("focusout", () => read(null));
  place.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const index = state.at === null ? (by > 0 ? -1 : allSteps.length) : allSteps.indexOf(state.at);
    read(allSteps[Math.min(allSteps.length - 1, Math.max(0, index + by))]);
  });
  return entry;
});
byId("more").classList.toggle("hidden", !DATA.charts.some(({ more }) => more));

const allSteps = [...new Set(DATA.charts.flatMap(({ series }) => series.flatMap(({ points }) => points.map(([step]) => step))))].sort((a, b) => a - b);
const nearest = (px, place) => allSteps.reduce((best, step) => Math.abs(place.x(step) - px) < Math.abs(place.x(best) - px) ? step : best, allSteps[0]);

/** Show the figures of all charts at a step; nothing when null. */
function read(step) {
  state.at = step;
  for (const { place, reading, chart } of places) {
    place.cursor.classList.toggle("hidden", step === null);
    if (step === null) { reading.textContent = ""; continue; }
    for (const end of ["x1", "x2"]) place.cursor.setAttribute(end, place.x(step));
    const found = place.series.map(({ name, drawn, averaged }) => {
      const at = drawn.findLast(([other]) => other <= step);
      if (!at) return null;
      const where = at[0] === step ? "" : ` (step ${at[0]})`;
      return `${chart.series.length > 1 ? `${name} ` : ""}${shown(at[1], chart.form)}${where}${averaged > 1 ? `, mean of ${averaged} logs` : ""}`;
    });
    reading.textContent = `step ${step.toLocaleString("en")}: ${found.filter(Boolean).join("; ")}`;
  }
}

function drawAll() {
  for (const { place, chart } of places) draw(place, chart, allSteps[0], allSteps.at(-1));
  read(state.at);
}

function drawRows() {
  const place = byId("rows");
  if (!place) return;
  for (const row of DATA.rows.rows) {
    const labels = row.tokens.map((text, index) => ({ text, index })).filter(({ index }) => row.start.p[index] !== null);
    const head = row.tokens.slice(0, labels.length ? labels[0].index : row.tokens.length).join("");
    const sides = [["At the start", row.start], [`At step ${DATA.rows.step}`, row.now]].map(([title, side]) => {
      const flow = el("div", { class: "flow" });
      for (const [index, text] of row.tokens.entries()) {
        if (index < (labels[0]?.index ?? 0)) continue;
        if (side.p[index] === null) { flow.append(el("span", { class: "prompt" }, text)); continue; }
        const weight = side.w[index];
        const level = weight > 0 ? Math.max(1, Math.min(10, Math.round(10 * weight))) : 0;
        const told = `p ${row.start.p[index].toPrecision(3)} at the start, ${row.now.p[index].toPrecision(3)} at step ${DATA.rows.step}; weight ${Number(weight.toPrecision(3))}`;
        flow.append(el("span", { class: `t w${level}`, title: told }, text));
      }
      const kept = labels.filter(({ index }) => side.w[index] > 0).length;
      return el("div", {}, el("h4", {}, `${title}: ${kept} of ${labels.length} label tokens have a weight, NLL ${side.nll === null ? "not finite" : side.nll.toFixed(3)}`), flow);
    });
    place.append(el("div", { class: "card row" },
      el("h3", {}, `Row ${row.row}`),
      el("details", {}, el("summary", {}, `${labels.length ? labels[0].index : row.tokens.length} tokens before`), el("div", { class: "prompt" }, head)),
      el("div", { class: "sides" }, ...sides)));
  }
}

for (const key of document.querySelectorAll("svg.key")) {
  const look = Number(key.dataset.look);
  key.classList.add(`look-${look}`);
  key.append(svg("path", { class: `curve dash-${look}`, d: "M1 6H29" }), marker(look, 15, 6));
}
for (const choice of document.querySelectorAll("input[name=smoothing]")) {
  choice.addEventListener("change", () => {
    state.smoothing = Number(choice.value);
    drawAll();
  });
}

(function followTheRun() {
  const waits = DATA.reload && Date.now() / 1000 - DATA.updated < DATA.stale_seconds;
  byId("reload-field").classList.toggle("hidden", !waits);
  byId("reload").checked = waits && location.hash !== "#still";
  byId("reload").addEventListener("change", () => history.replaceState(null, "", byId("reload").checked ? "#" : "#still"));
  if (waits) setInterval(() => { if (byId("reload").checked && !document.hidden && state.at === null) location.reload(); }, 20000);
})();

drawRows();
new ResizeObserver(drawAll).observe(byId("main"));
