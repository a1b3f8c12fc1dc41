// A second sentence or model beside this one: what stands against what, in one layer of both, and the difference.
const bothSides = () => [{ data: page, maps }, second];
const paired = () => second.pairs[state.unit];
const labelsIn = ({ data }) => data.units[state.unit];
const rowIn = ({ data }, piece) => (piece === null || state.unit === "pieces" ? piece : data.wordOf[piece]);
const zeroingIn = (side) => layersOf(side.data.methods[0], side)[side.data.layers.indexOf(page.layers[state.layer])] ?? null;
const differs = (part) => page[part] !== second.data[part];
// By what differs.
const sideNames = () => ["first", "second"].map((place, at) => {
  const sentence = [`${place} sentence`];
  const model = [bothSides()[at].data.model];
  return [...(differs("model") ? model : []), ...(differs("text") || !differs("model") ? sentence : [])].join(", ");
});
const sideTitles = () => (differs("model") ? sideNames() : sideNames().map(capitalised)); // a model keeps its name
const counterpart = (row) => paired().find(([one]) => one === row)?.[1] ?? null;

// Columns [row of the first, row of the second]; null where a token stands against nothing.
const columnsOf = (pairs, sizes) => {
  const next = [0, 0];
  const columns = [];
  for (const pair of [...pairs, sizes]) {
    pair.forEach((end, at) => {
      for (; next[at] < end; next[at] += 1) columns.push(at === 0 ? [next[0], null] : [null, next[1]]);
      next[at] += 1;
    });
    if (pair !== sizes) columns.push(pair);
  }
  return columns;
};
const alignedColumns = () => columnsOf(paired(), bothSides().map((side) => labelsIn(side).names.length));

const alignedColumn = (rows) => {
  const column = element("span", "", { className: "column" });
  const labels = bothSides().map(labelsIn);
  const names = rows.map((row, at) => (row === null ? null : labels[at].names[row]));
  rows.forEach((row, at) => {
    const token = choiceOf(at === 0 && row !== null ? "first" : "beside", names[at] ?? "");
    token.dir = "auto";
    token.className = row === null ? "gap" : "token";
    token.classList.toggle("differs", row !== null && names[0] !== names[1]);
    column.append(token);
  });
  const against = names[1] === null ? "nothing" : names[1];
  if (names[0] !== null) column.firstChild.setAttribute("aria-label", `${names[0]}, ${labels[0].place} ${labels[0].positions[rows[0]]}, against ${against}`);
  return column;
};

let alignedOf = [];
const drawAligned = (grids) => {
  const box = byId("beside-text");
  const of = [second, state.unit];
  if (of.some((part, i) => part !== alignedOf[i])) box.replaceChildren(...alignedColumns().map(alignedColumn));
  alignedOf = of;
  const chosen = [rowOf(state.piece), counterpart(rowOf(state.piece))];
  const drawnRows = grids.map((grid, at) => (chosen[at] === null ? null : grid?.[chosen[at]] ?? null));
  const most = largest(drawnRows.filter((row) => row !== null));
  alignedColumns().forEach((rows, i) => rows.forEach((row, at) => {
    if (row === null) return;
    const token = box.children[i].children[at];
    const value = drawnRows[at]?.[row] ?? null;
    const shade = shadeOf(value ?? 0, most);
    token.style.background = value === null ? "none" : `rgb(${shade})`;
    token.style.color = value === null ? "inherit" : inkOn(shade);
    token.title = `${labelsIn(bothSides()[at]).names[row]}: ${inPercent(value)} (${shown(value)})`;
    token.classList.toggle("chosen", row === chosen[at]);
    if (at === 1) return;
    token.setAttribute("aria-checked", String(row === chosen[0]));
    token.tabIndex = row === chosen[0] ? 0 : -1;
  }));
};

// First minus second, over the tokens that stand against each other; the others stay empty.
let subtracted = {};
const differenceOf = (first, other) => {
  if (subtracted.first === first && subtracted.other === other) return subtracted.grid;
  const grid = first.map((row) => row.map(() => null));
  for (const [dest, dest2] of paired()) {
    for (const [source, source2] of paired()) {
      const [one, two] = [first[dest][source], other[dest2][source2]];
      if (one !== null && two !== null) grid[dest][source] = one - two;
    }
  }
  subtracted = { first, other, grid };
  return grid;
};
const differenceLabels = () => {
  const [labels, others] = bothSides().map(labelsIn);
  const joined = (part) => labels[part].map((text, row) => {
    const other = counterpart(row);
    return other === null || labels.names[row] === others.names[other] ? text : `${text}|${others[part][other]}`;
  });
  const { trace, layout } = labels.map;
  const renamed = ([name, axis]) => {
    const other = others.map.layout[name];
    const alias = axis.categoryarray.map((key, row) => {
      const place = counterpart(row);
      const [one, two] = [axis.labelalias[key], place === null ? null : other.labelalias[other.categoryarray[place]]];
      return [key, two === null || one === two ? one : `${one}|${two}`];
    });
    return [name, { ...axis, labelalias: Object.fromEntries(alias) }];
  };
  const axes = Object.fromEntries(["xaxis", "yaxis"].map((name) => renamed([name, layout[name]])));
  return { ...labels, hover: joined("hover"), map: { trace, layout: { ...layout, ...axes } } };
};

const drawSide = (id, labels, z, { row, target, scale, of, choose }) => {
  const columns = inWindow(labels.names.length, row ?? 0);
  const view = viewOf(page.methods[0]);
  const customdata = labels.hover.map((dest) => labels.hover.map((source) => [dest, source]));
  const marks = row === null ? { shapes: [], annotations: [] } : {
    shapes: [outline(row, theme().mark)],
    annotations: chosenLabels(id, labels.map.layout.xaxis, row, columns, target),
  };
  const frame = mapFrame(labels, columns, target);
  const all = [second, z, view, state.unit, byId(id).clientWidth, ...of];
  draw(id, all, frame, { z, customdata, hovertemplate: page.hover[view][state.layer] }, scale, marks, choose);
};
const drawPair = (grids) => {
  const row = rowOf(state.piece);
  const rows = [row, counterpart(row)];
  const view = viewOf(page.methods[0]);
  const most = largest(grids.flat());
  const chosen = [chooseRow, (other) => chooseRow(paired().find(([, two]) => two === other)?.[0] ?? row)];
  const targets = bothSides().map((side) => rowIn(side, side.data.target));
  bothSides().forEach((side, at) => {
    const options = { row: rows[at], target: targets[at], scale: sequential(most, view), of: [most], choose: chosen[at] };
    drawSide(`pair-${at}`, labelsIn(side), grids[at], options);
  });
  const z = differenceOf(...grids);
  const end = largest(z.map((line) => line.map(Math.abs)));
  const colorbar = { title: { text: "first minus second" }, tickformat: ".2~p" };
  const scale = { colorscale: theme().diverging, cmin: -end, cmax: end, colorbar };
  drawSide("pair-difference", differenceLabels(), z, { row, target: targets[0], scale, of: [], choose: chooseRow });
};

const quoted = (name) => element("bdi", name);
// The source that the two draw on most differently, in words.
const besideFinding = (grids) => {
  const row = rowOf(state.piece);
  const other = counterpart(row);
  const [labels, others] = bothSides().map(labelsIn);
  const names = sideNames();
  if (other === null) return [quoted(labels.names[row]), ` stands against no token of the ${names[1]}.`];
  const apart = paired().filter(([one, two]) => one !== row && !labels.special[one] && !others.special[two])
    .map(([one, two]) => [one, two, grids[0][row][one], grids[1][other][two]]);
  if (apart.length === 0) return ["No other word stands against one of the other side."];
  const gap = ([, , one, two]) => Math.abs(one - two);
  const [one, two, share, share2] = apart.reduce((most, next) => (gap(next) > gap(most) ? next : most));
  const where = state.view === "layer" ? inView() : `rolled out up to ${inLayer()}`;
  const [here, there] = differs("model") ? names : names.map((name) => `the ${name}`);
  return [
    `${capitalised(where)}: `, quoted(labels.names[row]), " draws ", shareOf(share, "strong"), " on ", quoted(labels.names[one]), ` in ${here}, and `,
    ...(labels.names[row] === others.names[other] ? [] : [quoted(others.names[other]), " "]),
    shareOf(share2, "strong"), " on ", quoted(others.names[two]), ` in ${there}.`,
  ];
};

const fillTargets = () => byId("beside-predictions").replaceChildren(...bothSides().map(({ data }, at) => {
  const line = element("div", "");
  const prediction = data.predictions[data.target];
  const text = prediction === undefined ? "no prediction at a target" : predictionInWords(prediction);
  line.append(element("dt", sideTitles()[at]), element("dd", text));
  return line;
}));

// Why the two have no maps to subtract here; empty where they have.
const besideMissing = () => {
  if (paired() === undefined) return "One of the two has no words here: choose pieces.";
  const { layers, model, methods } = second.data;
  if (state.head !== null && chosenHead(methods[0], second) === undefined) return `Head ${state.head} is not in ${model}: choose all heads, or another one.`;
  return layers.includes(page.layers[state.layer]) ? ""
    : `Layer ${page.layers[state.layer]} is not in ${model}, which has layers ${layers[0]} to ${layers.at(-1)}: choose one of these.`;
};
const drawBeside = () => {
  byId("beside-panel").hidden = second === null;
  if (second === null) return;
  const missing = besideMissing();
  byId("beside-missing").textContent = missing;
  byId("beside-missing").hidden = missing === "";
  byId("beside-both").hidden = missing !== "";
  const names = sideTitles();
  bothSides().forEach(({ data }, at) => {
    byId(`pair-${at}-name`).textContent = names[at];
    byId(`pair-${at}-about`).textContent = `${data.model}: ${data.text}`;
  });
  fillTargets();
  if (missing !== "") return;
  const grids = bothSides().map(zeroingIn);
  byId("beside-finding").replaceChildren(...besideFinding(grids));
  drawAligned(grids);
  drawPair(grids);
  const unpaired = labelsIn(bothSides()[0]).names.length + labelsIn(second).names.length - 2 * paired().length;
  byId("beside-unpaired").textContent = unpaired === 0 ? "" : "Tokens that stand against none have no difference, and stay empty.";
};

const besideNumbers = () => {
  const grids = bothSides().map(zeroingIn);
  const pairs = besideMissing() === "" ? paired() : [];
  const [labels, others] = bothSides().map(labelsIn);
  const place = ([one, two]) => [labels.names[one], others.names[two]];
  return [
    ["layer", "destination, first", "destination, second", "source, first", "source, second", ...sideNames(), "first minus second"],
    ...pairs.flatMap((dest) => pairs.map((source) => {
      const values = grids.map((grid, at) => grid[dest[at]][source[at]]);
      const isShown = values.every((value) => value !== null);
      return [page.layers[state.layer], ...place(dest), ...place(source), ...values, isShown ? values[0] - values[1] : null];
    })),
  ];
};

asKeyed(byId("beside-text"), (row) => chooseRow(row));
asPointed(byId("beside-text"), (at) => {
  const [row] = alignedColumns()[at];
  if (row !== null) chooseRow(row);
});
