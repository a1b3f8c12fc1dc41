// The heads of the layer in view, for the chosen destination; one of them is shown in every panel, or all together.
const MOST_FROM = "most from";
const hasHeads = (side = { data: page, maps }) => side.data.heads !== null && side.data.heads.absent === "";
const headsOf = (method, side = { data: page, maps }) => (hasHeads(side) ? side.maps[state.unit].heads[method.name] : undefined);
// The layers of the chosen head; undefined where no head is chosen, or the method has no heads here.
const chosenHead = (method, side) => (state.head === null ? undefined : headsOf(method, side)?.[state.head]);
const inView = () => (state.head === null ? inLayer() : `head ${state.head} of ${inLayer()}`);
const grouped = () => (page.heads.queryHeads === 1
  ? "" : `the attention pattern is the mean over the ${page.heads.queryHeads} query heads that read its values`);
const headNote = (method) => {
  if (state.head === null) return "";
  if (chosenHead(method) === undefined) return "Of the whole layer: this method has no map of one head here.";
  return `Of head ${state.head} alone${method.name === "attention" && grouped() ? `: ${grouped()}` : ""}.`;
};

const chooseHead = (head) => {
  const next = state.head === head ? null : head;
  change({ head: next, view: next === null ? state.view : "layer" });
};

// The first line is all heads together.
const headLine = (at) => {
  const line = choiceOf("heads", "");
  const bar = element("span", "", { className: "bar" });
  bar.append(element("span", ""), element("span", ""));
  const canvases = ["map", "row", "row"].map((name) => element("canvas", "", { className: name }));
  line.append(element("b", at === 0 ? "all" : String(at - 1)), bar, ...canvases, element("small", "", { dir: "auto" }));
  return line;
};

const fillHead = (line, at, grids, row, most) => {
  const [, bar, map, zeroed, pattern, small] = line.children;
  const share = at === 0 ? 1 : page.heads.share[state.layer][at - 1];
  bar.firstChild.style.width = `${100 * share}%`;
  bar.lastChild.textContent = at === 0 ? "" : inPercent(share);
  picture(map, grids[0]);
  [zeroed, pattern].forEach((canvas, side) => picture(canvas, [grids[side][row]], most[side]));
  const source = largestElsewhere(grids[0][row]);
  const from = source === null ? "" : `${MOST_FROM} \u2068${unit().names[source]}\u2069 (${inPercent(grids[0][row][source])})`;
  small.textContent = from;
  line.setAttribute("aria-label", [at === 0 ? "all heads" : `head ${at - 1}, ${inPercent(share)} of the layer's mixing`, from].filter(Boolean).join(", "));
};

// Above the rows, where their tokens have room.
const LABEL_WIDTH = 10; // pixels
const labelHeads = () => {
  for (const place of document.querySelectorAll("#heads-view .sources")) {
    const { names } = unit();
    const fits = place.clientWidth >= LABEL_WIDTH * names.length;
    place.replaceChildren(...(fits ? names : []).map((name) => element("bdi", name)));
  }
};

let headsDrawn = [];
const drawHeads = () => {
  byId("heads-panel").hidden = page.heads === null && !asksHeads;
  const note = state.head === null ? "" : "Of all heads together: it is not taken apart by heads.";
  for (const place of document.querySelectorAll(".whole-note")) place.textContent = note;
  document.querySelector("input[name=view][value=rollout]").disabled = state.head !== null;
  byId("heads-absent").textContent = page.heads?.absent ?? "";
  byId("heads-view").hidden = !hasHeads();
  if (!hasHeads()) return;
  byId("heads-layer").textContent = inLayer();
  byId("heads-grouped").textContent = grouped() && `Beside a head, ${grouped()}.`;
  byId("heads-rollout").hidden = state.head === null;
  const row = rowOf(state.piece);
  const box = byId("heads");
  const methods = [page.methods[0], page.methods.find(({ name }) => name === "attention")];
  const whole = methods.map((method) => withoutHidden(maps[state.unit][method.name].layer));
  const apart = methods.map((method) => headsOf(method).map((layers) => withoutHidden(layers)));
  const of = [page, ramp(), state.unit, state.layer, row, hiddenNote()];
  if (!of.every((part, i) => part === headsDrawn[i])) {
    headsDrawn = of;
    const lines = apart[0].length + 1;
    if (box.childElementCount !== lines) box.replaceChildren(...Array.from({ length: lines }, (_, at) => headLine(at)));
    // One scale for the rows of all heads, so that they can be compared.
    const grids = (at) => (at === 0 ? whole : apart.map((heads) => heads[at - 1])).map((layers) => layers[state.layer]);
    const all = Array.from({ length: lines }, (_, at) => grids(at));
    const most = [0, 1].map((side) => largest(all.map((pair) => pair[side][row])));
    [...box.children].forEach((line, at) => fillHead(line, at, all[at], row, most));
    labelHeads();
  }
  markChoice(box, state.head === null ? 0 : state.head + 1);
};
// A live page can ask for the heads.
let asksHeads = false;

asChoice(byId("heads"), (at) => at === 0 ? (state.head !== null && chooseHead(state.head)) : chooseHead(at - 1));
