// Copying: any figure, table or example as CSV, and any drawing or example as a picture. What cannot be put into the
// clipboard is saved as a file.
const PICTURE_SCALE = 2;
// What a drawing's or an example's look is made of; a picture has no style sheet.
const LOOK = ["display", "position", "flex", "flex-flow", "align-items", "gap", "grid-template-columns", "width", "max-width", "min-width", "height", "margin",
  "padding", "border", "border-radius", "box-shadow", "background", "color", "font", "font-variant-numeric", "letter-spacing", "line-height", "text-align",
  "text-decoration", "white-space", "overflow-wrap", "overflow", "opacity", "vertical-align", "list-style", "tab-size", "unicode-bidi", "box-decoration-break",
  "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "text-anchor"];

const perModel = (name, values) => Object.fromEntries(values.map((value, set) => [COMPARED ? `${name}_${NAMES[set]}` : name, value]));
const groupRows = (groups) => groups.map((group) => ({
  label: group.label, sort: group.sort, kind: group.kind, tokens: group.count, ...perModel("kept_share", keptShares(group)),
  ...perModel("mean_p", group.p), ...perModel("mean_weight", group.weight),
}));

function exampleRows(example) {
  const rows = [];
  let label = example.label;
  for (const stretch of stretchesOf(example).filter((found) => found.labeled)) {
    for (let token = stretch.start; token < stretch.end; token += 1, label += 1) {
      const at = label;
      rows.push({
        row: example.row, position: token, token: TEXTS[TOKENS[example.token + token]],
        ...perModel("log_prob", SETS.map((set) => set.logProbs[at])), ...perModel("p", SETS.map((set) => probability(set.logProbs[at]))),
        ...perModel("rank", SETS.map((set) => set.rank()[at])), ...perModel("likeliest", SETS.map((set) => TEXTS[set.likeliest()[at * set.alternatives]])),
        ...perModel("kept", SETS.map((_, set) => Number(isKept(set, at)))), ...(WEIGHED ? perModel("weight", SETS.map((set) => set.weights[at])) : {}),
      });
    }
  }
  return rows;
}

const ROWS = {
  histogram: () => PANELS.flatMap(({ name, counts }) => counts.map((count, bin) => ({ of: name, p_from: FIGURES.histogram_edges[bin], p_to: FIGURES.histogram_edges[bin + 1], tokens: count }))),
  weights: () => FIGURES.weight_histogram.flatMap((counts, set) => counts.map((count, bin) => ({ of: NAMES[set] || "all tokens", weight_from: FIGURES.weight_edges[bin], weight_to: FIGURES.weight_edges[bin + 1], tokens: count }))),
  curve: () => GRID.map((threshold, index) => ({
    threshold, ...perModel("share_at_least", SETS.map((_, set) => atLeast(FIGURES.total.levels[set], index) / FIGURES.total.count)),
  })),
  density: () => FIGURES.density.flatMap((line, before) => line.map((tokens, after) => ({ bin_before: before, bin_after: after, tokens }))),
  positions: () => groupRows(FIGURES.by_position),
  tokens: () => groupRows(rankedTokens()),
  sorts: () => groupRows(FIGURES.by_sort),
};

function csv(rows) {
  const names = Object.keys(rows[0] ?? {});
  const field = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(field).join(",")).join("\n") + "\n";
}

/** Copy a node with its look written into it. */
function withLook(node) {
  const copy = node.cloneNode(true);
  const copies = [copy, ...copy.querySelectorAll("*")];
  [node, ...node.querySelectorAll("*")].forEach((original, index) => {
    const look = getComputedStyle(original);
    for (const name of LOOK) copies[index].style.setProperty(name, look.getPropertyValue(name));
    const before = getComputedStyle(original, "::before").content;
    if (/^".+"$/.test(before)) copies[index].prepend(before.slice(1, -1));
  });
  for (const button of copy.querySelectorAll(".copy")) button.remove();
  return copy;
}

/** Draw a node as a picture, as it stands on the page. */
async function picture(node) {
  const { width, height } = node.getBoundingClientRect();
  const body = el("div", { xmlns: "http://www.w3.org/1999/xhtml" }, withLook(node));
  const drawing = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height }, svg("foreignObject", { width: "100%", height: "100%" }, body));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(drawing))}`;
  await image.decode();
  const paper = el("canvas", { width: Math.ceil(PICTURE_SCALE * width), height: Math.ceil(PICTURE_SCALE * height) });
  const brush = paper.getContext("2d");
  brush.fillStyle = getComputedStyle(document.body).backgroundColor;
  brush.fillRect(0, 0, paper.width, paper.height);
  brush.drawImage(image, 0, 0, paper.width, paper.height);
  return new Promise((done) => paper.toBlob(done, "image/png"));
}

/** Put something into the clipboard, or save it where that is not allowed, and say which on the button. */
async function give(button, name, type, make) {
  const words = button.textContent;
  let told;
  try {
    const blob = await make();
    try {
      await navigator.clipboard.write([new ClipboardItem({ [type]: blob })]);
      told = "copied";
    } catch {
      const link = el("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      told = "saved";
    }
  } catch {
    told = "not possible here";
  }
  button.textContent = told;
  setTimeout(() => { button.textContent = words; }, 1500);
}

/** Return buttons that copy rows as CSV and a node as a picture. */
function copyButtons(name, rows, node) {
  const button = (words, title, act) => {
    const made = el("button", { type: "button", class: "quiet", title }, words);
    made.addEventListener("click", () => act(made));
    return made;
  };
  const text = button("CSV", "Copy the figures as CSV", (made) => give(made, `${name}.csv`, "text/plain", () => new Blob([csv(rows())], { type: "text/plain" })));
  const image = button("PNG", "Copy as a picture", (made) => give(made, `${name}.png`, "image/png", () => picture(node())));
  return el("span", { class: "copy" }, text, image);
}

for (const card of document.querySelectorAll("[data-copy]")) {
  card.prepend(copyButtons(card.dataset.copy, ROWS[card.dataset.copy], () => card));
}
