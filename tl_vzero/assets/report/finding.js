// The headline: what the chosen destination draws on most, in the layer in view; and what is predicted there.
// It looks past the destination itself and special tokens, as Scores.telling_layer does.
const largestElsewhere = (row) => {
  const { special } = unit();
  const chosen = rowOf(state.piece);
  const others = [...special.keys()].filter((source) => source !== chosen && !special[source]);
  return others.reduce((best, source) => (best === null || row[source] > row[best] ? source : best), null);
};
const shareOf = (value, tag = "span") => element(tag, inPercent(value), { title: shown(value) });
// As a name inside a sentence, and not at its beginning.
const inSentence = (label) => (/^[A-Z][a-z]+( [a-z×]+)*$/.test(label) ? label[0].toLowerCase() + label.slice(1) : label);

const finding = () => {
  const chosen = rowOf(state.piece);
  const [zeroing, other] = sides().map(([, method]) => gridOf(method)[chosen]);
  const { names } = unit();
  const source = largestElsewhere(zeroing);
  if (page.noWordKnown) return ["There is no finding here: the model knows no word of this sentence."];
  const [first, last] = [page.layers[0], page.layers[state.layer]];
  const builder = state.head !== null ? `Head ${state.head} of layer ${last} builds ` : state.view === "layer" ? `Layer ${last} builds `
    : first === last ? `Layer ${last}, rolled out, builds ` : `Layers ${first} to ${last} together build `;
  const parts = [builder, element("bdi", names[chosen])];
  if (source === null || zeroing[source] === 0) return [...parts, " from nothing but itself and special tokens."];
  const word = element("em", "");
  word.append(element("bdi", names[source]));
  parts.push(" ", shareOf(zeroing[source], "strong"), " from ", word);
  const others = other[source] === null ? [] : [`; ${inSentence(beside().label)} gives it `, shareOf(other[source])];
  return [...parts, ...others, "."];
};

// A live page can measure the effects on another prediction; it says how.
let measureAt = null;
let measureWord = null; // or the effects on one predicted word, or on its foil
const drawFinding = () => {
  const row = rowOf(state.piece);
  const { names, telling } = unit();
  byId("finding").replaceChildren(...finding());
  const grid = maps[state.unit].value_zeroing.layer[telling[row]][row];
  byId("telling").hidden = state.head !== null || state.view !== "layer" || telling[row] === state.layer;
  byId("telling").textContent = `Layer ${page.layers[telling[row]]} tells most of it: ${inPercent(grid[largestElsewhere(grid)] ?? 0)}`;
  byId("measure").hidden = measureAt === null || page.predictions.length === 0 || predictedAt() === page.target
    || page.predictions[predictedAt()].likeliest.length === 0;
  byId("measure").textContent = `Measure the effects on what is predicted at “${names[row]}”`;
};

// What comes after a word comes after its last piece.
const predictedAt = () => (page.predicts === "next token" && state.unit === "words"
  ? page.wordOf.lastIndexOf(rowOf(state.piece)) : state.piece);
const predictionInWords = ({ label, likeliest }) => {
  const first = likeliest.slice(0, NAMED).map(([token, probability]) => `\u2068${token}\u2069 (${inPercent(probability)})`);
  return first.length === 0 ? `${label}.` : `${label}: ${first.join(", ")}.`;
};
const fillPrediction = () => {
  byId("predicted-here").hidden = page.predictions.length === 0;
  if (page.predictions.length === 0) return;
  const { label, likeliest, ids } = page.predictions[predictedAt()];
  byId("predicted-here").textContent = predictionInWords(page.predictions[predictedAt()]);
  byId("predicted-label").textContent = likeliest.length === 0 ? label : `${label}:`;
  byId("predicted").replaceChildren(...likeliest.map(([token, probability], at) => {
    const item = element("li", "");
    const word = measureWord === null ? element("span", "", { className: "word" })
      : element("button", "", { type: "button", className: "word", value: String(ids[at]) });
    word.append(element("bdi", token));
    item.append(word, " ", Object.assign(shareOf(probability, "data"), { value: String(probability) }));
    return item;
  }));
};

byId("telling").addEventListener("click", () => {
  chooseLayer(unit().telling[rowOf(state.piece)]);
  byId("layer").focus(); // the button is gone
});
byId("measure").addEventListener("click", () => measureAt(predictedAt()));
const chooseWord = (event) => {
  const word = event.target.closest("#predicted button");
  if (word === null || (event.type === "keydown" && event.key !== "Enter")) return;
  event.preventDefault(); // a key is not a click, too
  const button = byId("as-foil"); // where there is no Shift
  const isFoil = event.shiftKey || button.ariaPressed === "true";
  button.ariaPressed = "false";
  measureWord(word.value, isFoil, predictedAt());
};
for (const type of ["click", "keydown"]) byId("part-prediction").addEventListener(type, chooseWord);
