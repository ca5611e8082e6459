// The tables of the mask page.
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
    return el("tr", {}, el("th", { scope: "row" }, KIND_WORDS[group.label] ?? group.label),
      ...[arrow(keptShares(group).map(percent)), whole(mk), whole(km)].map((text) => el("td", { class: "number" }, text)));
  }));
}

const shareCell = (share, second = false) => el("td", { class: "number" }, percent(share), meter(share, second));
const LAST = SETS.length - 1;
const maskedOf = (group) => group.count - keptOf(group, LAST);
const meanWeight = (group) => group.weight[LAST];

const RANKS = {
  masked: (group) => (state.mode === "weights" ? group.count * (MOST_WEIGHT - meanWeight(group)) : maskedOf(group)),
  share: (group) => (group.count < 5 ? 0 : state.mode === "weights" ? MOST_WEIGHT - meanWeight(group) : maskedOf(group) / group.count),
  count: (group) => group.count,
  moved: (group) => { const found = moved(group); return found.km + found.mk; },
};

/** Offer the sorts there are among tokens, or among words. */
function sortOptions() {
  const sorts = new Set(FIGURES[state.unit].map((group) => group.sort));
  state.sort = "";
  byId("sort").replaceChildren(el("option", { value: "" }, "all sorts"), ...[...sorts].sort().map((sort) => el("option", { value: sort }, sort)));
}

/** Return the groups the table lists, in its order. */
function rankedTokens() {
  const groups = FIGURES[state.unit].filter((group) =>
    (state.sort === "" || group.sort === state.sort) && (state.kind === "" || group.kind === state.kind));
  const ranked = groups.map((group) => [RANKS[state.rank](group), group]).filter(([value]) => value > 0);
  return ranked.sort(([one, first], [other, second]) => other - one || second.count - first.count).map(([, group]) => group);
}

function tokenTable() {
  const weighs = state.mode === "weights";
  const ranked = rankedTokens();
  const head = [state.unit === "tokens" ? "token" : "word", "sort", ...(KINDS ? ["kind"] : []), "tokens", ...(COMPARED && !weighs ? ["out", "in"] : []),
    ...(weighs ? ["mean weight"] : ["masked", "share"]), "mean p"];
  const optional = new Set(["sort", "mean p"]);
  const words = { out: "kept before, masked after", in: "masked before, kept after", tokens: "how many there are", share: "masked of all there are" };
  byId("token-table").tHead.replaceChildren(el("tr", {}, ...head.map((name, column) => el("th", {
    scope: "col", class: [column > (KINDS ? 2 : 1) ? "number" : "", optional.has(name) ? "optional" : ""].join(" "), ...(name in words ? { title: words[name] } : {}),
  }, name))));
  byId("token-table").tBodies[0].replaceChildren(...ranked.slice(0, state.rows).map((group) => {
    const button = el("button", { type: "button", title: "Search the examples for it" }, visible(group.label));
    button.addEventListener("click", () => search(group.label.trim() || group.label));
    const cells = [el("th", { scope: "row", class: "word" }, button), el("td", { class: "dim optional" }, group.sort)];
    if (KINDS) cells.push(el("td", { class: "dim" }, KIND_WORDS[group.kind] ?? group.kind));
    cells.push(el("td", { class: "number" }, whole(group.count)));
    if (weighs) cells.push(el("td", { class: "number" }, arrow(group.weight.map(shownWeight)), meter(meanWeight(group) / MOST_WEIGHT)));
    else {
      if (COMPARED) { const found = moved(group); cells.push(el("td", { class: "number" }, whole(found.km)), el("td", { class: "number" }, whole(found.mk))); }
      cells.push(el("td", { class: "number" }, whole(maskedOf(group))), shareCell(maskedOf(group) / group.count, true));
    }
    cells.push(el("td", { class: "number optional" }, arrow(group.p.map(shownP))));
    return el("tr", {}, ...cells);
  }));
  byId("more").classList.toggle("hidden", ranked.length <= state.rows);
}

function sortTable() {
  const weighs = state.mode === "weights";
  const value = weighs ? "mean weight" : COMPARED ? "kept before → after" : "kept";
  const head = ["sort", ...(KINDS ? ["kind"] : []), "tokens", value, ...(COMPARED ? [] : ["mean p"])];
  byId("sort-table").tHead.replaceChildren(el("tr", {}, ...head.map((name, column) => el("th", { scope: "col", class: `${column > (KINDS ? 1 : 0) ? "number" : ""} ${name === "mean p" ? "optional" : ""}` }, name))));
  const groups = [...FIGURES.by_sort].sort((one, other) => other.count - one.count);
  byId("sort-table").tBodies[0].replaceChildren(...groups.map((group) => {
    const shares = keptShares(group);
    const shown = weighs ? group.weight.map(shownWeight) : shares.map(percent);
    return el("tr", {}, el("th", { scope: "row" }, group.sort), ...(KINDS ? [el("td", { class: "dim" }, KIND_WORDS[group.kind] ?? group.kind)] : []),
      el("td", { class: "number" }, whole(group.count)),
      el("td", { class: "number" }, arrow(shown), ...(COMPARED ? [] : [meter(weighs ? group.weight[0] / MOST_WEIGHT : shares[0])])),
      ...(COMPARED ? [] : [el("td", { class: "number optional" }, shownP(group.p[0]))]));
  }));
}
