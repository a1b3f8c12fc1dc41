// The sentence in words: each token a button, coloured by what the chosen destination draws on.
const NAMED = 4;

const tokenButtons = (box) => {
  const labels = unit();
  const pieces = state.unit === "pieces";
  return labels.names.flatMap((name, row) => {
    const joins = pieces && page.wordOf !== null && row > 0 && page.wordOf[row] === page.wordOf[row - 1];
    const text = joins ? name.replace(/^##/, "") : name;
    const button = element("button", text, { type: "button", className: "token", dir: "auto" });
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", `${name}, ${labels.place} ${labels.positions[row]}`);
    button.classList.toggle("joins", joins);
    return [button];
  });
};

const texts = new Map();
const drawText = (side, method) => {
  const box = byId(`text-${side}`);
  const shownUnit = unit();
  if (texts.get(box) !== shownUnit) {
    texts.set(box, shownUnit);
    box.replaceChildren(...tokenButtons(box));
  }
  const chosen = rowOf(state.piece);
  const row = gridOf(method)[chosen];
  const most = largest([row]);
  [...box.children].forEach((button, source) => {
    const value = row[source];
    const shade = shadeOf(value ?? 0, most);
    button.style.background = value === null ? "none" : `rgb(${shade})`;
    button.style.color = value === null ? "inherit" : inkOn(shade);
    button.title = `${shownUnit.names[source]}: ${shown(value)}`;
  });
  markChoice(box, chosen);
  if (side === "beside") for (const button of box.children) button.tabIndex = -1;
  return row;
};

const drawTexts = () => {
  const [zeroing] = sides().map(([side, method]) => drawText(side, method));
  byId("text-beside-name").textContent = beside().label;
  const { names } = unit();
  const ranked = zeroing.map((value, source) => [value, source]).sort((a, b) => b[0] - a[0]);
  const most = ranked.slice(0, NAMED).filter(([value]) => value > 0);
  const named = most.map(([value, source]) => `\u2068${names[source]}\u2069 (${shown(value)})`).join(", ");
  const where = state.view === "layer" ? `In ${inLayer()}` : `Rolled out up to ${inLayer()}`;
  byId("text-told").textContent = `${where}, Value Zeroing: most from ${named || "nothing"}.`;
};

for (const side of ["value_zeroing", "beside"]) asChoice(byId(`text-${side}`), (row) => chooseRow(row));
