// What is shown; `show` sets it. A live page shows one report after the other.
let page = null;
let maps = null;
let second = null; // { data, maps, pairs } of what stands beside it
const dark = window.matchMedia("(prefers-color-scheme: dark)");
// `piece` is always the position of a word piece, so that it survives a change to words and back.
// `head`, `scale`, `itself`, `special` and `window` are null where nothing of the kind was chosen.
const state = {
  layer: 0, view: "layer", unit: "pieces", piece: 0, method: null, effect: null, threshold: 0, top: "all",
  head: null, scale: null, itself: null, special: null, window: null,
};
// Called with the state after each change of it.
let remember = () => {};

const unit = () => page.units[state.unit];
const tokenName = (row) => `${unit().names[row]}${unit().unknown[row] ? " (unknown)" : ""}`;
const rowOf = (piece) => (state.unit === "words" ? page.wordOf[piece] : piece);
const pieceOf = (row) => (state.unit === "words" ? page.wordOf.indexOf(row) : row);
const targetRow = () => (page.target === null ? null : rowOf(page.target));
const beside = () => page.methods.find((method) => method.name === state.method);
// A method that is rolled out already, or cannot be, has one view only.
const viewOf = (method) => (method.views.includes(state.view) ? state.view : method.views[0]);
const layersOf = (method, side = { data: page, maps }) => withoutHidden(
  chosenHead(method, side) ?? side.maps[state.unit][method.name][viewOf(method)], side.data.units[state.unit]);
const gridOf = (method) => layersOf(method)[state.layer];
const sides = () => [["value_zeroing", page.methods[0]], ["beside", beside()]];

const fillDestinations = () => {
  const labels = unit();
  byId("destination").replaceChildren(...labels.names.map((_, row) => {
    const target = row === targetRow() ? " (target)" : "";
    return new Option(`${labels.positions[row]}: ${tokenName(row)}${target}`, String(row));
  }));
};

const fillMethods = () => {
  byId("method").replaceChildren(...page.methods.slice(1).map(({ name, label }) => new Option(label, name)));
};

const describe = (id, method) => {
  const note = method.notes[state.view];
  const about = method.about && `${capitalised(method.about)}.`;
  byId(id).textContent = [about, note, headNote(method)].filter(Boolean).join(" ");
};

const showChoices = () => {
  const labels = unit();
  const row = rowOf(state.piece);
  byId("layer").value = String(state.layer);
  byId("layer-name").textContent = `${page.layers[state.layer]} (of ${page.layers[0]}–${page.layers.at(-1)})`;
  byId("layer").setAttribute("aria-valuetext", inLayer());
  byId("destination").value = String(row);
  byId("method").value = state.method;
  for (const choice of document.querySelectorAll("input:is([type=radio], [type=checkbox])")) choice.checked = choice.value === state[choice.name];
  byId("window").value = String(state.window ?? "");
  for (const note of document.querySelectorAll(".hidden-note")) note.textContent = hiddenNote();
  byId("maps-how").textContent = state.view === "layer"
    ? "Read along a row: it shows from which sources (columns) this layer builds that destination."
    : "Read along a row: it shows from which input tokens (columns) the layers up to this one together build that destination.";
  describe("about-value_zeroing", page.methods[0]);
  describe("about-beside", beside());
  for (const name of document.querySelectorAll(".chosen-name")) {
    name.textContent = `“${labels.names[row]}” (${labels.place} ${labels.positions[row]}${labels.unknown[row] ? ", unknown to the model" : ""})`;
  }
  for (const part of document.querySelectorAll("[data-effect]")) part.hidden = part.dataset.effect !== state.effect;
};

const render = () => {
  showChoices();
  const [first, last] = inWindow(unit().names.length, rowOf(state.piece));
  byId("panels").classList.toggle("stacked", last - first >= STACKED_ABOVE);
  drawFinding();
  drawBeside();
  drawTexts();
  drawMaps();
  drawStrips();
  drawHeads();
  drawRow();
  drawEffect();
  drawFlow();
  fillPrediction();
  fillNumbers();
  fillAgreement();
  fillTable();
  remember(state);
};
const change = (part) => {
  Object.assign(state, part);
  render();
};
const chooseRow = (row) => change({ piece: pieceOf(row) });
let layerChosen = false; // by somebody; else it is the report's own
const chooseLayer = (layer) => {
  layerChosen = true;
  change({ layer });
};

// `wanted` holds the parts of a state that somebody asked for; what this report does not have is left out.
const chosenAtFirst = (wanted) => {
  const has = (list, value, otherwise) => (list.includes(value) ? value : otherwise);
  const others = page.methods.slice(1).map(({ name }) => name);
  const effects = Object.keys(page.effects);
  const pieces = [...page.units.pieces.names.keys()];
  const head = has([...(hasHeads() ? page.heads.share[0].keys() : [])], wanted.head, null);
  return {
    layer: has([...page.layers.keys()], wanted.layer, page.opens),
    head,
    view: has(["layer", ...(head === null ? ["rollout"] : [])], wanted.view, "layer"),
    unit: has(Object.keys(page.units), wanted.unit, "pieces"),
    piece: has(pieces, wanted.piece, page.start),
    method: has(others, wanted.method, others[0]),
    effect: has(effects, wanted.effect, effects[0] ?? null),
    threshold: page.flow === null ? null : has(page.flow.bounds, wanted.threshold, page.flow.start),
    top: page.flow === null ? null : has(TOPS, wanted.top, TOPS[2]),
    scale: has(["sqrt"], wanted.scale, null),
    itself: has(["hidden"], wanted.itself, null),
    special: has(["hidden"], wanted.special, null),
    window: has(WINDOWS, wanted.window, null),
  };
};

const show = async (report, wanted) => {
  const sides = [report, report.beside ?? null];
  const [codes, others] = await Promise.all(sides.map((side) => side && unpack(side.maps).arrayBuffer()));
  page = report.data;
  maps = readMaps(page, codes);
  second = others && { ...report.beside, maps: readMaps(report.beside.data, others) };
  for (const [name, html] of Object.entries(report.parts)) byId(`part-${name}`).innerHTML = html;
  layerChosen = [...page.layers.keys()].includes(wanted.layer);
  Object.assign(state, chosenAtFirst(wanted));
  byId("layer").max = String(page.layers.length - 1);
  byId("units").disabled = page.units.words === undefined;
  const classes = byId("panels").classList;
  classes.remove("waiting");
  classes.toggle("without-effect", Object.keys(page.effects).length === 0);
  byId("flow-panel").hidden = page.flow === null;
  byId("status").hidden = true;
  fillDestinations();
  fillMethods();
  render();
};

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("layer").addEventListener("input", (event) => chooseLayer(Number(event.target.value)));
byId("threshold").addEventListener("input", (event) => change({ threshold: page.flow.bounds[event.target.value] }));
byId("destination").addEventListener("change", (event) => chooseRow(Number(event.target.value)));
byId("method").addEventListener("change", (event) => change({ method: event.target.value }));
byId("window").addEventListener("change", ({ target }) => change({ window: target.value === "" ? null : Number(target.value) }));
byId("top").addEventListener("change", ({ target }) => change({ top: target.value }));
document.addEventListener("change", ({ target }) => {
  if (target.type === "checkbox") change({ [target.name]: target.checked ? target.value : null });
  if (target.type !== "radio") return;
  state[target.name] = target.value;
  if (target.name === "unit") fillDestinations();
  render();
});
dark.addEventListener("change", () => page !== null && render());

if (!canUnpack()) return;
