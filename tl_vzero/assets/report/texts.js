// The sentence in words: each token a button, coloured by what the chosen destination draws on.
const NAMED = 4;

const tokensOf = (side) => {
  const labels = unit();
  const words = state.unit === "pieces" ? page.wordOf : null;
  const joins = (row) => words !== null && row > 0 && words[row] === words[row - 1];
  return labels.names.map((name, row) => {
    const token = choiceOf(side, joins(row) ? name.replace(/^##/, "") : name);
    token.dir = "auto";
    token.classList.add("token");
    token.classList.toggle("joins", joins(row));
    token.classList.toggle("joined", joins(row + 1));
    token.classList.toggle("unknown", labels.unknown[row]);
    const mark = labels.unknown[row] ? ", unknown to the model" : "";
    if (side !== "beside") token.setAttribute("aria-label", `${name}, ${labels.place} ${labels.positions[row]}${mark}`);
    return token;
  });
};

const texts = new Map();
const drawText = (side, method) => {
  const box = byId(`text-${side}`);
  const shownUnit = unit();
  if (texts.get(box) !== shownUnit) {
    texts.set(box, shownUnit);
    box.replaceChildren(...tokensOf(side));
  }
  const chosen = rowOf(state.piece);
  const row = gridOf(method)[chosen];
  const most = largest([row]);
  [...box.children].forEach((token, source) => {
    const value = row[source];
    const shade = shadeOf(value ?? 0, most);
    token.style.background = value === null ? "none" : `rgb(${shade})`;
    token.style.color = value === null ? "inherit" : inkOn(shade);
    token.title = `${tokenName(source)}: ${inPercent(value)} (${shown(value)})`;
  });
  markChoice(box, chosen);
  return row;
};

const drawTexts = () => {
  const [zeroing] = sides().map(([side, method]) => drawText(side, method));
  byId("text-beside-name").textContent = beside().label;
  const ranked = zeroing.map((value, source) => [value, source]).sort((a, b) => b[0] - a[0]);
  const most = ranked.slice(0, NAMED).filter(([value]) => value > 0);
  const named = most.map(([value, source]) => `\u2068${tokenName(source)}\u2069 (${inPercent(value)})`).join(", ");
  const where = state.view === "layer" ? `In ${inView()}` : `Rolled out up to ${inLayer()}`;
  byId("text-summary").textContent = page.noWordKnown
    ? "No finding: the model knows no word of this sentence."
    : `${where}, Value Zeroing: most from ${named || "nothing"}.`;
  byId("text-unknown").hidden = !unit().unknown.includes(true);
};

asChoice(byId("text-value_zeroing"), (row) => chooseRow(row));
asPointed(byId("text-beside"), (row) => chooseRow(row));
