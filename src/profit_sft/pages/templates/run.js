// Draws the curves of a run, or of several, and the rows with their tokens. Words and tables stand in the page already.
const curves = chartGroup({ axis: "optimizer step", unit: (step) => `step ${step.toLocaleString("en")}`, marks: DATA.marks });
for (const chart of DATA.charts) curves.add(byId(chart.more ? "more-curves" : "curves"), chart);
byId("more").classList.toggle("hidden", !DATA.charts.some(({ more }) => more));

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

drawKeys();
smoothByButtons(curves);

(function followTheRun() {
  const waits = DATA.reload && Date.now() / 1000 - DATA.updated < DATA.stale_seconds;
  byId("reload-field").classList.toggle("hidden", !waits);
  byId("reload").checked = waits && location.hash !== "#still";
  byId("reload").addEventListener("change", () => history.replaceState(null, "", byId("reload").checked ? "#" : "#still"));
  if (waits) setInterval(() => { if (byId("reload").checked && !document.hidden && curves.at === null) location.reload(); }, 20000);
})();

drawRows();
new ResizeObserver(curves.draw).observe(byId("main"));
