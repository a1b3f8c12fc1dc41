// The page of an encoder-decoder: one step of the decoder is shown at a time.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const page = JSON.parse(byId("report-data").textContent);
const size = { read: page.read.names.length, written: page.written.names.length };
const state = {
  step: 0, layer: page.layers.length - 1, encoderLayer: page.encoderLayers.length - 1, view: "layer", method: 0,
  scale: null, itself: null, special: null, window: null, // what choices.js and figures.js read
};

// Of each method: its maps by layer. A row of `shares` and `joint` has the decoder's tokens, then the encoder's.
const readMethods = (codes) => {
  const number = readNumbers(codes);
  const list = (length, item) => Array.from({ length }, item);
  const layers = (count, rows, columns) => list(count, () => list(rows, () => list(columns, number)));
  const both = size.written + size.read;
  return page.methods.map(() => {
    const encoder = layers(page.encoderLayers.length, size.read, size.read);
    const shares = layers(page.layers.length, size.written, both);
    const joint = layers(page.layers.length, size.written, both);
    const part = (from, to) => shares.map((layer) => layer.map((row) => row.slice(from, to)));
    return { encoder, shares, joint, decoder: part(0, size.written), cross: part(size.written, both) };
  });
};
if (!canUnpack() || !await loadPlotly()) return;
const methods = readMethods(await unpack(byId("report-maps").textContent).arrayBuffer());

const quoted = (text) => `“\u2068${text}\u2069”`;
const layersShown = () => methods[state.method][state.view === "layer" ? "shares" : "joint"];
const rowShown = () => layersShown()[state.layer][state.step];
const summed = (values) => values.reduce((sum, value) => sum + value, 0);
const atLayer = () => `layer ${page.layers[state.layer]}`;
const nextToken = (step) => page.steps[step].token ?? "?";

const tokenOf = (tag, { names, joins, unknown }, at) => {
  const token = element(tag, joins[at] ? names[at].replace(/^##/, "") : names[at]);
  token.dir = "auto";
  token.className = ["token", joins[at] && "joins", joins[at + 1] && "joined", unknown[at] && "unknown"].filter(Boolean).join(" ");
  return token;
};
const fillTexts = () => {
  byId("text-read").replaceChildren(...page.read.names.map((_, at) => tokenOf("span", page.read, at)));
  const choices = page.steps.map((_, step) => {
    const isLast = step + 1 === size.written; // what nobody has read yet
    const button = isLast ? element("button", nextToken(step)) : tokenOf("button", page.written, step + 1);
    button.type = "button";
    button.dir = "auto";
    button.classList.add("token");
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", `step ${step + 1}: ${nextToken(step)}`);
    return button;
  });
  byId("text-written").replaceChildren(tokenOf("span", page.written, 0), ...choices);
};
const shade = (token, value, most) => {
  const colour = value === null ? null : shadeOf(value, most);
  token.style.background = colour === null ? "none" : `rgb(${colour})`;
  token.style.color = colour === null ? "inherit" : inkOn(colour);
  token.title = value === null ? "" : `${inPercent(value)} (${shown(value)})`;
};
const drawStep = () => {
  const row = rowShown();
  const most = largest([row]);
  const [read, written] = [byId("text-read").children, byId("text-written").children];
  [...read].forEach((token, at) => shade(token, row[size.written + at], most));
  [...written].forEach((token, at) => {
    shade(token, at <= state.step ? row[at] : null, most);
    token.classList.toggle("later", at > state.step + 1);
  });
  markChoice(byId("text-written"), state.step + 1);
  const fromRead = summed(row.slice(size.written));
  const names = [...page.written.names, ...page.read.names];
  const where = state.view === "layer" ? `In ${atLayer()}` : `Rolled out up to ${atLayer()}`;
  const strongest = (from, to) => {
    const ranked = row.slice(from, to).map((value, at) => [value, from + at]).sort((a, b) => b[0] - a[0]);
    return ranked.slice(0, 3).filter(([value]) => value > 0).map(([value, at]) => `\u2068${names[at]}\u2069 (${inPercent(value)})`).join(", ") || "nothing";
  };
  byId("step-title").replaceChildren(
    "To write ", element("bdi", `“${nextToken(state.step)}”`), state.view === "layer" ? `, ${atLayer()} draws ` : `, the layers up to ${page.layers[state.layer]} draw `,
    element("strong", inPercent(fromRead)),
    " from what the encoder read, and ", element("strong", inPercent(1 - fromRead)), " from what is written so far.",
  );
  const { probability } = page.steps[state.step];
  const chance = probability === null ? "" : ` Its probability is ${inPercent(probability)}.`;
  byId("step-reads").textContent =
    `Step ${state.step + 1} of ${page.steps.length}: the decoder stands at ${quoted(page.written.names[state.step])} (position ${state.step}), and writes ${quoted(nextToken(state.step))}.${chance}`;
  byId("step-summary").textContent =
    `${where}, ${page.methods[state.method].label}. Most from the encoder: ${strongest(size.written, row.length)}. Most from what is written: ${strongest(0, size.written)}.`;
  byId("back").disabled = state.step === 0;
  byId("on").disabled = state.step + 1 === page.steps.length;
};
const fillPrediction = () => {
  const { likeliest } = page.steps[state.step];
  byId("prediction").hidden = likeliest.length === 0;
  byId("predicted").replaceChildren(...likeliest.map(([token, share]) => {
    const item = document.createElement("li");
    const word = element("span", "", { className: "word" });
    word.append(element("bdi", token));
    item.append(word, " ", element("data", inPercent(share), { value: String(share), title: shown(share) }));
    return item;
  }));
};

const divider = () => ({
  type: "line", yref: "y domain", y0: 0, y1: 1, x0: size.written - 0.5, x1: size.written - 0.5,
  line: { color: theme().accent, width: 2 }, layer: "above",
});
const drawMap = (id, frame, grid, labels, place, most, shapes, onRow) => {
  const view = id === "joint" || (id === "step" && state.view === "rollout") ? "rollout" : "layer";
  const columns = [0, grid[0].length - 1];
  const trace = { z: grid, customdata: labels, hovertemplate: page.hoverBox.replace("@", place) };
  const of = [grid, most, view, place, byId(`map-${id}`).clientWidth];
  draw(`map-${id}`, of, { ...frame, target: null, columns }, trace, sequential(most, view), { shapes }, onRow);
};
const pairs = (dests, sources) => dests.map((dest) => sources.map((source) => [dest, source]));
const { encoder: readLabels, decoder: writtenLabels } = page.hover;
const bothLabels = [...writtenLabels, ...readLabels];
const cells = {
  encoder: pairs(readLabels, readLabels),
  decoder: pairs(writtenLabels, writtenLabels),
  cross: pairs(writtenLabels, readLabels),
  joint: pairs(writtenLabels, bothLabels),
};
const chooseStep = (step) => change({ step });
const drawFigures = () => {
  const { encoder, decoder, cross, joint } = methods[state.method];
  const { layer, encoderLayer, step } = state;
  const marks = () => [outline(step, theme().mark)];
  const most = largest([...decoder[layer], ...cross[layer]]);
  drawMap("cross", page.figures.cross, cross[layer], cells.cross, atLayer(), most, marks(), chooseStep);
  drawMap("decoder", page.figures.decoder, decoder[layer], cells.decoder, atLayer(), most, marks(), chooseStep);
  const below = encoder[encoderLayer];
  const place = `encoder layer ${page.encoderLayers[encoderLayer]}`;
  drawMap("encoder", page.figures.encoder, below, cells.encoder, place, largest(below), [], () => {});
  const rolled = `rolled out up to ${atLayer()}`;
  drawMap("joint", page.figures.joint, joint[layer], cells.joint, rolled, largest(joint[layer]), [...marks(), divider()], chooseStep);
  const rows = layersShown().map((of) => of[step]);
  const labels = rows.map(() => cells.joint[step]);
  const lines = [outline(layer, theme().accent), divider()];
  drawMap("step", page.step, rows, labels, "layer %{y}", largest(rows), lines, (at) => change({ layer: at }));
};
const showChoices = () => {
  for (const [id, value] of [["step", state.step], ["layer", state.layer], ["encoder-layer", state.encoderLayer], ["method", state.method]]) byId(id).value = String(value);
  for (const choice of document.querySelectorAll("input[name=view]")) choice.checked = choice.value === state.view;
  byId("step-name").textContent = `${state.step + 1} of ${page.steps.length}: ${nextToken(state.step)}`;
  byId("layer-name").textContent = `${page.layers[state.layer]} (of ${page.layers[0]}–${page.layers.at(-1)})`;
  byId("encoder-layer-name").textContent = `${page.encoderLayers[state.encoderLayer]} (of ${page.encoderLayers[0]}–${page.encoderLayers.at(-1)})`;
  const method = page.methods[state.method];
  byId("method-about").textContent = `${method.label}: ${method.about}.`;
  byId("half-limit").hidden = method.name === "value_zeroing";
};
const render = () => {
  showChoices();
  drawStep();
  fillPrediction();
  drawFigures();
};
const change = (part) => {
  Object.assign(state, part);
  render();
};

byId("controls").reset();
fillTexts();
byId("panels").classList.remove("waiting");
byId("panels").classList.toggle("stacked", Math.max(size.read, size.written) >= STACKED_ABOVE);
byId("status").hidden = true;
render();
asPointed(byId("text-written"), (at) => at > 0 && chooseStep(at - 1));
asKeyed(byId("text-written"), chooseStep);
byId("back").addEventListener("click", () => chooseStep(state.step - 1));
byId("on").addEventListener("click", () => chooseStep(state.step + 1));
byId("step").addEventListener("input", (event) => chooseStep(Number(event.target.value)));
byId("layer").addEventListener("input", (event) => change({ layer: Number(event.target.value) }));
byId("encoder-layer").addEventListener("input", (event) => change({ encoderLayer: Number(event.target.value) }));
byId("method").addEventListener("change", (event) => change({ method: Number(event.target.value) }));
for (const choice of document.querySelectorAll("input[name=view]")) choice.addEventListener("change", () => change({ view: choice.value }));
dark.addEventListener("change", render);
