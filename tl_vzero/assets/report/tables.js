const headed = (text, cells) => {
  const line = document.createElement("tr");
  const head = element("th", "", { scope: "row" });
  head.append(element("bdi", text));
  line.append(head, ...cells);
  return line;
};
const inLayer = () => `layer ${page.layers[state.layer]}`;

const fillNumbers = () => {
  const labels = unit();
  const row = rowOf(state.piece);
  const pair = [page.methods[0], beside()];
  const columns = pair.map((method) => gridOf(method)[row]);
  const rolled = pair.map((method) => viewOf(method) === "rollout");
  byId("numbers-head").replaceChildren(
    element("th", "source", { scope: "col" }),
    ...pair.map((method, side) => element("th", rolled[side] ? `${method.label}, rolled out` : method.label, { scope: "col" })),
  );
  byId("numbers-caption").textContent =
    [`Destination ${tokenName(row)} (${labels.place} ${labels.positions[row]}), ${inView()}`, hiddenNote()].filter(Boolean).join(". ");
  byId("numbers-body").replaceChildren(...labels.names.map(
    (_, source) => headed(tokenName(source), columns.map((values) => shareOf(values[source], "td"))),
  ));
};

// The method beside Value Zeroing stands out in both tables, and so does the layer in view.
const marked = (line, name) => {
  line.className = name === state.method ? "chosen" : "";
  return line;
};

const fillAgreement = () => {
  const lines = page.agreement[state.effect];
  if (lines === undefined) return;
  byId("agreement-n").textContent = String(Math.max(...lines.map((line) => line.n)));
  byId("agreement-head").replaceChildren(
    element("th", "method", { scope: "col" }),
    ...page.layers.map((layer, i) => element("th", `layer ${layer}`, { scope: "col", className: i === state.layer ? "in-view" : "" })),
  );
  byId("agreement-body").replaceChildren(...lines.map(({ name, label, layers }) => {
    const cells = layers.map((found, i) => {
      const cell = element("td", rank(found[0]), { className: i === state.layer ? "in-view" : "" });
      cell.style.setProperty("--rho", Math.max(0, found[0] ?? 0));
      cell.append(element("small", span(found)));
      return cell;
    });
    return marked(headed(label, cells), name);
  }));
};

const fillTable = () => {
  byId("table-caption").textContent = `All methods in ${inLayer()}`;
  const found = Object.fromEntries((page.agreement[state.effect] ?? []).map((line) => [line.name, line.layers]));
  byId("table-body").replaceChildren(...page.table.map(({ name, label, layers }) => {
    const [entropy, own, special, zeroing] = layers[state.layer];
    const cells = [element("td", shown(entropy)), shareOf(own, "td"), shareOf(special, "td"), element("td", rank(zeroing))];
    if (found[name] !== undefined) {
      const ranks = found[name][state.layer];
      cells.push(element("td", rank(ranks[0])), element("td", span(ranks)));
    }
    return marked(headed(label, cells), name);
  }));
};
