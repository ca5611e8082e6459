// The charts of the mask page.
const FIGURES = DATA.figures;
const LOGIT_END = 10; // as the bins of the figures
const MARGIN = { left: 40, right: 8 }; // of a chart, pixels
const TICKS = [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];
const logit = (p) => Math.max(-LOGIT_END, Math.min(LOGIT_END, Math.log(p / (1 - p))));
const LOGITS = GRID.map(logit);
const KIND_ORDER = [1, 2, 0]; // core, style, none: of DATA.kinds

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
}

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

let densityLines = { width: 0, place: null, lines: null };

function density() {
  const width = byId("density").clientWidth;
  if (densityLines.width !== width) densityLines = { width, ...densityCells() };
  const { place, lines } = densityLines;
  const threshold = GRID[state.index];
  lines.replaceChildren(
    svg("line", { class: "threshold", x1: place.x(threshold), x2: place.x(threshold), y1: place.top, y2: place.bottom }),
    svg("line", { class: "threshold", x1: place.left, x2: place.right, y1: place.y(threshold), y2: place.y(threshold) }));
}

/** Draw what does not depend on the threshold; return where the lines go. */
function densityCells() {
  const area = canvas("density", Math.min(340, Math.max(240, byId("density").clientWidth * 0.7)), "Probability before, across, and after, upward");
  const counts = FIGURES.density;
  const size = counts.length;
  const most = Math.max(...counts.flat());
  area.bottom -= 14;
  const cellWidth = (area.right - area.left) / size;
  const cellHeight = (area.bottom - area.top) / size;
  counts.forEach((line, before) => line.forEach((count, after) => {
    if (count === 0) return;
    area.drawing.append(svg("rect", {
      class: "cell", x: area.left + before * cellWidth + 0.5, y: area.bottom - (after + 1) * cellHeight + 0.5, width: cellWidth - 1,
      height: cellHeight - 1, "fill-opacity": 0.08 + 0.92 * Math.sqrt(count / most), rx: 1.5,
    }, svg("title", {}, `${whole(count)} tokens`)));
  }));
  const share = (p) => (logit(p) + LOGIT_END) / (2 * LOGIT_END);
  const x = (p) => area.left + share(p) * (area.right - area.left);
  const y = (p) => area.bottom - share(p) * (area.bottom - area.top);
  for (const tick of [0.001, 0.1, 0.5, 0.9, 0.999]) {
    area.drawing.append(
      svg("text", { x: x(tick), y: area.bottom + 15, "text-anchor": "middle" }, String(tick)),
      svg("text", { x: area.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const lines = svg("g");
  area.drawing.append(
    svg("text", { x: (area.left + area.right) / 2, y: area.height - 4, "text-anchor": "middle" }, "p before"),
    svg("text", { x: area.left, y: area.top - 8, "text-anchor": "start" }, "p after"),
    svg("line", { class: "rule", x1: area.left, x2: area.right, y1: area.bottom, y2: area.top }), lines);
  return { place: { x, y, left: area.left, right: area.right, top: area.top, bottom: area.bottom }, lines };
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
