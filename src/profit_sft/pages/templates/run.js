// Draws the curves of a run, or of several, and the rows with their tokens. Words and tables stand in the page already.
const curves = chartGroup({ axis: "optimizer step", unit: (step) => `step ${step.toLocaleString("en")}`, marks: DATA.marks });
for (const chart of DATA.charts) curves.add(byId(chart.more ? "more-curves" : "curves"), chart);
byId("more").classList.toggle("hidden", !DATA.charts.some(({ more }) => more));

function drawRows() {
  const place = byId("rows");
  if (!place) return;
  const figure = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)));
  for (const row of DATA.rows.rows) {
    const labels = row.tokens.map((text, index) => ({ text, index })).filter(({ index }) => row.start.p[index] !== null);
    const head = row.tokens.slice(0, labels.length ? labels[0].index : row.tokens.length).join("");
    const sides = [["At the start", row.start], [`At step ${DATA.rows.step}`, row.now]].map(([title, side]) => {
      const flow = el("div", { class: "flow" });
      for (const [index, text] of row.tokens.entries()) {
        if (index < (labels[0]?.index ?? 0)) continue;
        if (row.start.p[index] === null) { flow.append(el("span", { class: "prompt" }, text)); continue; }
        const weight = side.w[index];
        const level = weight > 0 ? Math.max(1, Math.min(10, Math.round(10 * weight))) : 0;
        const told = `p ${figure(row.start.p[index])} at the start, ${figure(row.now.p[index])} at step ${DATA.rows.step}; weight ${figure(weight)}`;
        flow.append(tokenEl(text, { class: `t w${level}`, title: told }));
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

drawKeys();
smoothByButtons(curves);

/** A page that is loaded again stands as it was left: its switch, and what was opened. */
function followTheRun() {
  const waits = DATA.reload && Date.now() / 1000 - DATA.updated < DATA.stale_seconds;
  const reload = byId("reload");
  byId("reload-field").classList.toggle("hidden", !waits);
  reload.checked = waits && ADDRESS.get("reload") !== "off";
  reload.addEventListener("change", () => ADDRESS.set({ reload: reload.checked ? null : "off" }));
  const foldings = [...document.querySelectorAll("details")];
  for (const place of ADDRESS.get("open")?.split(" ") ?? []) foldings[place]?.setAttribute("open", "");
  for (const folding of foldings) {
    folding.addEventListener("toggle", () => ADDRESS.set({ open: foldings.flatMap(({ open }, place) => (open ? [place] : [])).join(" ") }));
  }
  if (waits) setInterval(() => { if (reload.checked && !document.hidden && curves.at === null) location.reload(); }, 20000);
}

drawRows();
followTheRun();
new ResizeObserver(curves.draw).observe(byId("main"));
