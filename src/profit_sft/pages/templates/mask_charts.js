// The charts of the mask page. Blue is what is kept, gray what is masked; before and after, core and style differ by dash
// and by the words at the line's end.
const FIGURES = DATA.figures;
const LOGIT_END = 10; // as the bins of the figures
const MARGIN = { left: 56, right: 8 }; // of a chart, pixels
const TICKS = [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];
const P_TITLE = "p, the probability of the token (both ends stretched)";
const logit = (p) => Math.max(-LOGIT_END, Math.min(LOGIT_END, Math.log(p / (1 - p))));
const LOGITS = GRID.map(logit);

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
}

/** A drawing as wide as its place, so that its text keeps its size on a phone, with titles of its axes. */
function canvas(place, height, label, titles) {
  const width = Math.max(240, place.clientWidth);
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  place.append(drawing);
  const area = { drawing, width, height, left: MARGIN.left, right: width - MARGIN.right, top: 22, bottom: height - 38 };
  const middle = (area.top + area.bottom) / 2;
  drawing.append(
    svg("text", { class: "title", x: (area.left + area.right) / 2, y: height - 4, "text-anchor": "middle" }, titles.x),
    svg("text", { class: "title", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, titles.y));
  return area;
}

const emptied = (id) => {
  byId(id).replaceChildren();
  return byId(id);
};
const across = (area) => (value) => area.left + ((value + LOGIT_END) / (2 * LOGIT_END)) * (area.right - area.left);

function bottomAxis(area, ticks, x) {
  for (const [tick, words] of ticks) {
    area.drawing.append(
      svg("line", { class: "rule", x1: x(tick), x2: x(tick), y1: area.bottom, y2: area.bottom + 4 }),
      svg("text", { x: x(tick), y: area.bottom + 16, "text-anchor": "middle" }, words));
  }
  area.drawing.append(svg("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }));
}

function probabilityAxis(area) {
  const rare = new Set(area.width < 460 ? [0.0001, 0.9999, 0.01, 0.99] : []);
  bottomAxis(area, TICKS.filter((tick) => !rare.has(tick)).map((tick) => [logit(tick), String(tick)]), across(area));
}

/** Rules for shares up to `most`; `bend` maps them to [0, 1]. */
function shareAxis(area, shares, bend = (share) => share) {
  const y = (share) => area.bottom - bend(share) * (area.bottom - area.top);
  for (const share of shares) {
    area.drawing.append(
      svg("line", { class: "rule", x1: area.left, x2: area.right, y1: y(share), y2: y(share) }),
      svg("text", { x: area.left - 6, y: y(share) + 4, "text-anchor": "end" }, `${Number((100 * share).toPrecision(3))}%`));
  }
  return y;
}
const QUARTERS = [0.25, 0.5, 0.75, 1];

const thresholdsShown = () => (state.mode === "weights" ? [] : state.direction === "middle" ? [state.index, state.upper] : [state.index]);

function thresholdLines(area, label) {
  for (const index of thresholdsShown()) {
    const at = across(area)(LOGITS[index]);
    const anchor = at > (area.left + area.right) / 2 ? "end" : "start";
    area.drawing.append(
      svg("line", { class: "threshold", x1: at, x2: at, y1: area.top - 6, y2: area.bottom }),
      svg("text", { class: "value", x: at + (anchor === "end" ? -6 : 6), y: area.top - 8, "text-anchor": anchor }, label(index)));
  }
}

// ---- Histograms ----

/** Each model, or each kind of token, has a histogram of its own: name and counts by bin. */
const PANELS = (function panels() {
  const summed = (kinds) => kinds[0].map((_, bin) => kinds.reduce((sum, counts) => sum + counts[bin], 0));
  if (COMPARED) return FIGURES.histogram.map((kinds, set) => ({ name: NAMES[set], counts: summed(kinds) }));
  const all = { name: "all tokens", counts: summed(FIGURES.histogram[0]) };
  return KINDS === null ? [all] : [all, ...[1, 2].map((kind) => ({ name: KIND_NAMES[kind], counts: FIGURES.histogram[0][kind] }))];
})();

/** Draw bars whose height is the square root of their share, lest one tall bar press the others flat. */
function bars(place, { name, counts }, options) {
  const area = canvas(place, options.height, `Histogram of the label tokens by ${options.of}, ${name}`, { x: options.title, y: "share (√ scale)" });
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  const most = Math.max(...counts) / total;
  const rules = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1].filter((share) => share <= most && share >= most / 60);
  const y = shareAxis(area, rules, (share) => Math.sqrt(share / most));
  counts.forEach((count, bin) => {
    if (count === 0) return;
    const [start, end] = [options.x(area, options.edges[bin]), options.x(area, options.edges[bin + 1])];
    for (const [from, to, kept] of options.sides(area, start, end)) {
      const bar = svg("rect", { class: kept ? "bar kept" : "bar masked", x: from + 0.5, width: Math.max(0.5, to - from - 1), y: y(count / total), height: area.bottom - y(count / total) });
      bar.append(svg("title", {}, `${percent(count / total)}: ${whole(count)} tokens`));
      area.drawing.append(bar);
    }
  });
  area.drawing.append(svg("text", { class: "value", x: area.right, y: 12, "text-anchor": "end" }, name));
  return area;
}

/** Cut a bar where a threshold runs through it. */
function cutAtThresholds(area, start, end) {
  const cuts = thresholdsShown().map((index) => across(area)(LOGITS[index]));
  const keeps = (place) => {
    if (state.mode === "weights") return true;
    if (state.direction === "middle") return place >= cuts[0] && place < cuts[1];
    return (place >= cuts[0]) === (state.direction === "higher");
  };
  const edges = [start, ...cuts.filter((cut) => start < cut && cut < end), end];
  return edges.slice(1).map((to, index) => [edges[index], to, keeps((edges[index] + to) / 2)]);
}

function histogram() {
  const place = emptied("histogram");
  PANELS.forEach((panel, index) => {
    const last = index === PANELS.length - 1;
    const area = bars(place, panel, {
      of: "probability", height: PANELS.length === 1 ? 240 : 150, title: last ? P_TITLE : "", edges: FIGURES.histogram_edges,
      x: (of, p) => across(of)(logit(p)), sides: cutAtThresholds,
    });
    probabilityAxis(area);
    thresholdLines(area, (at) => (index === 0 ? shownP(GRID[at]) : ""));
  });
}

function weights() {
  const place = emptied("weights");
  const edges = FIGURES.weight_edges;
  const x = (area, weight) => area.left + ((weight - edges[0]) / (edges.at(-1) - edges[0])) * (area.right - area.left);
  FIGURES.weight_histogram.forEach((counts, set) => {
    const area = bars(place, { name: NAMES[set] || "all tokens", counts }, {
      of: "weight", height: COMPARED ? 150 : 240, title: set === SETS.length - 1 ? "weight in the loss" : "", edges, x, sides: (_, start, end) => [[start, end, true]],
    });
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => edges[0] + part * (edges.at(-1) - edges[0]));
    bottomAxis(area, ticks.map((tick) => [tick, shownWeight(tick)]), (tick) => x(area, tick));
  });
}

// ---- Lines ----

/** Name lines where they lie furthest apart: the upper ones above, the lowest below. */
function nameApart(area, all) {
  if (all.length < 2) return;
  const gap = (index) => {
    const heights = all.map(({ points }) => points[index][1]).sort((one, other) => one - other);
    return Math.min(...heights.slice(1).map((height, at) => height - heights[at]));
  };
  const inside = all[0].points.map((point, index) => index).filter((index) => all[0].points[index][0] > area.left + 40 && all[0].points[index][0] < area.right - 40);
  const best = inside.reduce((found, index) => (gap(index) > gap(found) ? index : found), inside[0]);
  const lowest = Math.max(...all.map(({ points }) => points[best][1]));
  for (const { name, look, points } of all) {
    const [x, y] = points[best];
    area.drawing.append(svg("text", { class: `end ${look}`, x: y === lowest ? x - 6 : x + 6, y: y === lowest ? Math.min(y + 14, area.bottom - 6) : y - 6, "text-anchor": y === lowest ? "end" : "start" }, name));
  }
}

/** Draw lines with their names at their ends, moved apart where they would touch. */
function lines(area, all, namedAtEnd = true) {
  const ends = all.map(({ points }) => points.at(-1));
  const order = ends.map((_, index) => index).sort((one, other) => ends[one][1] - ends[other][1]);
  const heights = new Map();
  let free = -Infinity;
  for (const index of order) {
    free = Math.max(free + 13, ends[index][1]);
    heights.set(index, free);
  }
  all.forEach(({ look, name, points }, index) => {
    area.drawing.append(svg("polyline", { class: `line ${look}`, points: points.map((point) => point.join(",")).join(" ") }));
    if (name && namedAtEnd) area.drawing.append(svg("text", { class: `end ${look}`, x: ends[index][0] + 8, y: heights.get(index) + 4 }, name));
  });
}

function curvePoints(area, y, group, set) {
  const x = across(area);
  const counts = new Float64Array(2 * GRID.length + 2);
  for (let at = 0; at < group.levels[set].length; at += 2) counts[group.levels[set][at]] += group.levels[set][at + 1];
  let beyondIt = 0; // what has p > GRID[index], and then also what has p = GRID[index]
  const points = [];
  for (let index = GRID.length - 1; index >= 0; index -= 1) {
    beyondIt += counts[2 * index + 2] + counts[2 * index + 3];
    const kept = state.direction === "lower" ? group.count - beyondIt : beyondIt + counts[2 * index + 1];
    points.push([x(LOGITS[index]), y(kept / group.count)]);
  }
  return points.reverse();
}

function curve() {
  const area = canvas(emptied("curve"), 240, "Kept share against the threshold", { x: "threshold (both ends stretched)", y: `share with p ${state.direction === "lower" ? "≤" : "≥"} threshold` });
  const y = shareAxis(area, QUARTERS);
  probabilityAxis(area);
  const kinds = COMPARED ? [] : FIGURES.by_kind.filter((group) => group.kind !== "none");
  const looks = ["", "second"];
  const all = [
    ...kinds.map((group) => ({ look: group.kind, name: group.label, points: curvePoints(area, y, group, 0) })),
    ...SETS.map((_, set) => ({ look: COMPARED ? looks[1 - set] : "", name: COMPARED ? NAMES[set] : kinds.length > 0 ? "all" : "", points: curvePoints(area, y, FIGURES.total, set) })),
  ];
  lines(area, all, false);
  nameApart(area, all);
  const keptAt = (levels, index) => (state.direction === "lower" ? FIGURES.total.count - above(levels, index) : atLeast(levels, index));
  const sharesAt = (index) => SETS.map((_, set) => keptAt(FIGURES.total.levels[set], index) / FIGURES.total.count);
  thresholdLines(area, (index) => arrow(sharesAt(index).map(percent)));
  for (const index of thresholdsShown()) {
    for (const share of sharesAt(index)) area.drawing.append(svg("circle", { class: "dot", cx: across(area)(LOGITS[index]), cy: y(share), r: 4 }));
  }
}

function positions() {
  const area = canvas(emptied("positions"), 250, "Kept share and mean probability by place in the answer", { x: "which token of the answer", y: "share, or mean" });
  area.right -= 60;
  const y = shareAxis(area, QUARTERS);
  const groups = FIGURES.by_position;
  const step = (area.right - area.left) / groups.length;
  const x = (index) => area.left + step * (index + 0.5);
  const every = Math.ceil(58 / step);
  bottomAxis(area, groups.flatMap((group, index) => (index % every === 0 ? [[index, group.label]] : [])), x);
  const weighs = state.mode === "weights";
  const shares = (group, set) => (weighs ? group.weight[set] / MOST_WEIGHT : keptOf(group, set) / group.count);
  const all = SETS.map((_, set) => ({ look: COMPARED && set === 0 ? "second" : "", name: NAMES[set] || (weighs ? "weight" : "kept"), of: (group) => shares(group, set) }));
  if (!COMPARED) all.unshift({ look: "p", name: "mean p", of: (group) => group.p[0] });
  lines(area, all.map((one) => ({ ...one, points: groups.map((group, index) => [x(index), y(Math.max(0, one.of(group)))]) })));
  for (const { look, of } of all) {
    groups.forEach((group, index) => area.drawing.append(
      svg("circle", { class: `dot ${look}`, cx: x(index), cy: y(Math.max(0, of(group))), r: 3 },
        svg("title", {}, `tokens ${group.label}: ${percent(of(group))} of ${whole(group.count)}`))));
  }
}

// ---- Before and after ----

let densityLines = { width: 0, place: null, lines: null };

function density() {
  const width = byId("density").clientWidth;
  if (densityLines.width !== width) densityLines = { width, ...densityCells() };
  const { place, lines: rules } = densityLines;
  const threshold = GRID[state.index];
  rules.replaceChildren(
    svg("line", { class: "threshold", x1: place.x(threshold), x2: place.x(threshold), y1: place.top, y2: place.bottom }),
    svg("line", { class: "threshold", x1: place.left, x2: place.right, y1: place.y(threshold), y2: place.y(threshold) }));
}

/** Draw what does not depend on the threshold; return where the lines go. */
function densityCells() {
  const area = canvas(emptied("density"), Math.min(360, Math.max(260, byId("density").clientWidth * 0.7)), "Probability before, across, and after, upward", { x: "p before", y: "p after" });
  const counts = FIGURES.density;
  const size = counts.length;
  const most = Math.max(...counts.flat());
  const cellWidth = (area.right - area.left) / size;
  const cellHeight = (area.bottom - area.top) / size;
  const shade = (count) => 0.1 + 0.9 * Math.sqrt(count / most);
  counts.forEach((line, before) => line.forEach((count, after) => {
    if (count === 0) return;
    area.drawing.append(svg("rect", {
      class: "cell", x: area.left + before * cellWidth + 0.5, y: area.bottom - (after + 1) * cellHeight + 0.5, width: cellWidth - 1,
      height: cellHeight - 1, "fill-opacity": shade(count), rx: 1.5,
    }, svg("title", {}, `${whole(count)} tokens`)));
  }));
  byId("density-legend").replaceChildren(el("li", {}, "1 token", el("span", { class: "ramp count" }), `${whole(most)} tokens`), el("li", {}, "above the diagonal: likelier after"));
  const share = (p) => (logit(p) + LOGIT_END) / (2 * LOGIT_END);
  const x = (p) => area.left + share(p) * (area.right - area.left);
  const y = (p) => area.bottom - share(p) * (area.bottom - area.top);
  bottomAxis(area, [0.001, 0.1, 0.5, 0.9, 0.999].map((tick) => [tick, String(tick)]), x);
  for (const tick of [0.001, 0.1, 0.5, 0.9, 0.999]) area.drawing.append(svg("text", { x: area.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  const rules = svg("g");
  area.drawing.append(svg("line", { class: "rule", x1: area.left, x2: area.right, y1: area.bottom, y2: area.top }), rules);
  return { place: { x, y, left: area.left, right: area.right, top: area.top, bottom: area.bottom }, lines: rules };
}
