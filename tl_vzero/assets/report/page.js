const status = byId("status");
if (!("DecompressionStream" in window)) {
  status.textContent = "This browser cannot unpack the figures: it needs Chrome 80, Firefox 113, Safari 16.4 or newer.";
  return;
}

const page = JSON.parse(byId("report-data").textContent);
const [codes, plotly] = await Promise.all([unpack("report-maps").arrayBuffer(), unpack("plotly-js").text()]);
const script = document.createElement("script");
script.textContent = plotly;
document.head.append(script);

const maps = readMaps(page, codes);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
// `piece` is always the position of a word piece, so that it survives a change to words and back.
const state = {
  layer: 0,
  view: "layer",
  unit: "pieces",
  piece: page.start,
  method: page.methods[1].name,
  effect: Object.keys(page.effects)[0],
};

const unit = () => page.units[state.unit];
const rowOf = (piece) => (state.unit === "words" ? page.wordOf[piece] : piece);
const pieceOf = (row) => (state.unit === "words" ? page.wordOf.indexOf(row) : row);
const targetRow = () => (page.target === null ? null : rowOf(page.target));
const beside = () => page.methods.find((method) => method.name === state.method);
// A method that is rolled out already, or cannot be, has one view only.
const viewOf = (method) => (method.views.includes(state.view) ? state.view : method.views[0]);
const gridOf = (method) => maps[state.unit][method.name][viewOf(method)][state.layer];

const fillDestinations = () => {
  const labels = unit();
  byId("destination").replaceChildren(...labels.names.map((name, row) => {
    const target = row === targetRow() ? " (target)" : "";
    return new Option(`${labels.positions[row]}: ${name}${target}`, String(row));
  }));
};

const fillMethods = () => {
  byId("method").replaceChildren(...page.methods.slice(1).map(({ name, label }) => new Option(label, name)));
};

const describe = (id, method) => {
  const note = method.notes[state.view];
  const about = method.about && `${method.about[0].toUpperCase()}${method.about.slice(1)}.`;
  byId(id).textContent = [about, note].filter(Boolean).join(" ");
};

const showChoices = () => {
  byId("layer").value = String(state.layer);
  byId("layer-name").textContent = `${page.layers[state.layer]} (of ${page.layers[0]}–${page.layers.at(-1)})`;
  byId("layer").setAttribute("aria-valuetext", inLayer());
  byId("destination").value = String(rowOf(state.piece));
  byId("method").value = state.method;
  byId("maps-how").textContent = state.view === "layer"
    ? "Read along a row: it shows from which sources (columns) this layer builds that destination."
    : "Read along a row: it shows from which input tokens (columns) the layers up to this one together build that destination.";
  describe("about-value_zeroing", page.methods[0]);
  describe("about-beside", beside());
  for (const part of document.querySelectorAll("[data-effect]")) part.hidden = part.dataset.effect !== state.effect;
};

const render = () => {
  showChoices();
  drawMaps();
  drawRow();
  drawEffect();
  fillNumbers();
  fillAgreement();
  fillTable();
};
const chooseRow = (row) => {
  state.piece = pieceOf(row);
  render();
};
const chooseLayer = (layer) => {
  state.layer = layer;
  render();
};

byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("layer").addEventListener("input", (event) => chooseLayer(Number(event.target.value)));
byId("destination").addEventListener("change", (event) => chooseRow(Number(event.target.value)));
byId("method").addEventListener("change", (event) => {
  state.method = event.target.value;
  render();
});
for (const radio of document.querySelectorAll("input[type=radio]")) {
  radio.addEventListener("change", () => {
    state[radio.name] = radio.value;
    if (radio.name === "unit") fillDestinations();
    render();
  });
}
dark.addEventListener("change", render);

status.hidden = true;
byId("controls").reset();
fillDestinations();
fillMethods();
render();
