// Line charts that the pages of runs and of studies share: titled axes, bands, smoothing, and a reading under the pointer.
const CHART_HEIGHT = 230;

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

/** A running mean that forgets, of every value behind the step; what is not finite stays a gap. */
function smoothed(points, share) {
  if (!share) return points;
  let means = null;
  return points.map(([step, ...values]) => {
    if (values[0] === null) return [step, ...values];
    means = means === null ? values : values.map((value, index) => share * means[index] + (1 - share) * value);
    return [step, ...means];
  });
}

/** The marker of a look, around a point. */
function marker(look, x, y) {
  const d = [
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "m-4 -4h8v8h-8z", "m0 -5l5 9h-10z", "m0 -5l5 5l-5 5l-5 -5z", "m0 5l5 -9h-10z", "m-1.5 -5h3v10h-3zm-3.5 3.5h10v3h-10z",
  ][look % 6];
  return svg("path", { class: "marker", d: `M${x} ${y}${d}` });
}

/** The parts of a line between its gaps. */
const partsOf = (points) => {
  const found = [[]];
  for (const point of points) point[1] === null ? found.push([]) : found.at(-1).push(point);
  return found.filter((part) => part.length);
};

/** A name in so many characters. */
const shortened = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);

/** Label the lines' ends, apart from each other. */
function endLabels(ends, top, bottom) {
  ends.sort((a, b) => a.y - b.y);
  let least = top + 4;
  for (const end of ends) least = (end.at = Math.max(end.y, least)) + 13;
  let most = bottom + 4;
  for (const end of [...ends].reverse()) most = (end.at = Math.min(end.at, most)) - 13;
}

/**
 * Draw a chart: `title`, `form` of its numbers, and `series` of `name`, `look` (color), `mark` (dash and marker; as look
 * where it is not said) and `points`, each `[x, value]` or, with a band around it, `[x, value, low, high]`.
 */
function drawChart(place, chart, { axis, first, last, ticksAt, logarithmic, smoothing, marks }) {
  const series = chart.series.map((entry) => ({ mark: entry.look, ...entry, drawn: smoothed(entry.points, smoothing) }));
  const width = Math.max(280, place.clientWidth || 420);
  const several = series.length > 1;
  const height = Math.max(CHART_HEIGHT, 54 + 13 * series.length);
  const longest = several ? Math.max(...series.map(({ name }) => name.length)) : 0;
  const room = several ? Math.min(width * 0.34, 12 + 6.2 * longest) : 10;
  const [left, right, top, bottom] = [52, width - room, 12, height - 42];
  const values = series.flatMap(({ drawn }) => drawn.flatMap(([, ...found]) => found)).filter((value) => value !== null);
  const ofSeries = series.filter(({ points }) => points.length).map(({ name, points }) => `${name}: ${shown(points[0][1], chart.form)} at first, ${shown(points.at(-1)[1], chart.form)} last`);
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  place.setAttribute("aria-label", `${chart.title}. ${ofSeries.join("; ")}`);
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (high - low < 1e-9 * Math.max(1e-9, Math.abs(high))) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  [low, high] = [low - 0.03 * (high - low), high + 0.03 * (high - low)];
  const scale = logarithmic ? Math.log2 : (value) => value;
  const x = (at) => left + (last > first ? (scale(at) - scale(first)) / (scale(last) - scale(first)) : 0.5) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low, high, 4)) {
    picture.append(
      svg("line", { class: "rule", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, onAxis(tick, chart.form)));
  }
  picture.append(
    svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, axis));
  for (const tick of ticksAt ?? (last > first ? ticks(first, last, width < 400 ? 4 : 6).filter(Number.isInteger) : [first])) picture.append(svg("text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
  for (const { step, kind, text } of marks) {
    if (kind === "checkpoint") picture.append(svg("path", { class: "checkpoint", d: `M${x(step)} ${bottom}l3.5 4l-3.5 4l-3.5 -4z` }, svg("title", {}, `checkpoint of step ${step}`)));
    else picture.append(svg("line", { class: "warning", x1: x(step), x2: x(step), y1: top, y2: bottom }), svg("path", { class: "warning-sign", d: `M${x(step)} ${top - 9}l5.5 10h-11z` }, svg("title", {}, `step ${step}: ${text}`)));
  }
  const ends = [];
  for (const entry of series) {
    const group = svg("g", { class: `series look-${entry.look}` });
    const at = (step, value) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
    for (const part of partsOf(entry.drawn)) {
      const band = part.filter(([, , from, to]) => to > from);
      if (band.length > 1) group.append(svg("polygon", { class: "band", points: [...band.map(([step, , from]) => at(step, from)), ...band.reverse().map(([step, , , to]) => at(step, to))].join(" ") }));
      if (part.length > 1) group.append(svg("polyline", { class: `curve dash-${entry.mark}`, points: part.map(([step, value]) => at(step, value)).join(" ") }));
      else group.append(marker(entry.mark, x(part[0][0]), y(part[0][1])));
      for (let index = 1; several && part.length > 8 && index < 4; index += 1) {
        const [step, value] = part[Math.floor((index * part.length) / 4)];
        group.append(marker(entry.mark, x(step), y(value)));
      }
    }
    const end = partsOf(entry.drawn).at(-1)?.at(-1);
    if (end) {
      group.append(marker(entry.mark, x(end[0]), y(end[1])));
      ends.push({ name: entry.name, y: y(end[1]) });
    }
    picture.append(group);
  }
  if (several) {
    endLabels(ends, top, bottom);
    const most = Math.max(6, Math.floor((room - 10) / 6.2));
    for (const { name, at } of ends) picture.append(svg("text", { class: "end", x: right + 9, y: at + 4 }, shortened(name, most)));
  }
  const cursor = svg("line", { class: "cursor hidden", y1: top, y2: bottom });
  picture.append(cursor);
  place.replaceChildren(picture);
  Object.assign(place, { cursor, x, width, series });
}

/** Charts that share one horizontal axis, `unit` of which a reading names, as in "step 3" or "128 tokens". */
function chartGroup({ axis, unit, ticksAt = null, logarithmic = false, marks = [] }) {
  const group = { smoothing: 0, at: null, places: [], steps: [] };
  const nearest = (px, place) => group.steps.reduce((best, step) => Math.abs(place.x(step) - px) < Math.abs(place.x(best) - px) ? step : best, group.steps[0]);

  /** Show the figures of all charts at a step; nothing when null. */
  group.read = (step) => {
    group.at = step;
    for (const { place, reading, chart } of group.places) {
      place.cursor.classList.toggle("hidden", step === null);
      if (step === null) { reading.textContent = ""; continue; }
      for (const end of ["x1", "x2"]) place.cursor.setAttribute(end, place.x(step));
      const found = place.series.map(({ name, drawn, averaged }) => {
        const at = drawn.findLast(([other]) => other <= step);
        if (!at) return null;
        const where = at[0] === step ? "" : ` (${unit(at[0])})`;
        return `${chart.series.length > 1 ? `${name} ` : ""}${shown(at[1], chart.form)}${where}${averaged > 1 ? `, mean of ${averaged} logs` : ""}`;
      });
      reading.textContent = `${unit(step)}: ${found.filter(Boolean).join("; ")}`;
    }
  };

  group.draw = () => {
    const found = new Set(group.places.flatMap(({ chart }) => chart.series.flatMap(({ points }) => points.map(([step]) => step))));
    group.steps = [...found].sort((a, b) => a - b);
    const axes = { axis, first: group.steps[0], last: group.steps.at(-1), ticksAt, logarithmic, smoothing: group.smoothing, marks };
    for (const { place, chart } of group.places) drawChart(place, chart, axes);
    group.read(group.steps.includes(group.at) ? group.at : null);
  };

  group.add = (holder, chart) => {
    const place = el("div", { class: "plot", role: "img", tabindex: "0" });
    const reading = el("p", { class: "reading", "aria-live": "polite" });
    holder.append(el("figure", { class: "card" }, el("h3", {}, chart.title), place, reading));
    group.places.push({ place, reading, chart });
    place.addEventListener("pointermove", (event) => {
      const box = place.getBoundingClientRect();
      group.read(nearest((event.clientX - box.left) * (place.width / box.width), place));
    });
    place.addEventListener("pointerleave", () => group.read(null));
    place.addEventListener("focusout", () => group.read(null));
    place.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const index = group.at === null ? (by > 0 ? -1 : group.steps.length) : group.steps.indexOf(group.at);
      group.read(group.steps[Math.min(group.steps.length - 1, Math.max(0, index + by))]);
    });
  };
  return group;
}

/** Draw the sample of a look into every `svg.key` of the page. */
function drawKeys() {
  for (const key of document.querySelectorAll("svg.key")) {
    const look = Number(key.dataset.look);
    const mark = Number(key.dataset.mark ?? look);
    key.setAttribute("class", `key look-${look}`);
    key.replaceChildren(svg("path", { class: `curve dash-${mark}`, d: "M1 6H29" }), marker(mark, 15, 6));
  }
}

/** Let the buttons called `smoothing` smooth the charts of a group, and the address say how. */
function smoothByButtons(group) {
  const choices = [...document.querySelectorAll("input[name=smoothing]")];
  const chosen = choices.find(({ value }) => value === ADDRESS.get("smoothing")) ?? choices[0];
  chosen.checked = true;
  group.smoothing = Number(chosen.value);
  for (const choice of choices) {
    choice.addEventListener("change", () => {
      group.smoothing = Number(choice.value);
      ADDRESS.set({ smoothing: choice === choices[0] ? null : choice.value });
      group.draw();
    });
  }
}
