const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
// By figure: what it was last drawn of. Drawing is most of the time between a choice and its picture.
const drawn = new Map();
const isDrawn = (id, of) => {
  const last = drawn.get(id);
  return last !== undefined && last.length === of.length && of.every((part, i) => part === last[i]);
};

const theme = () => page.themes[dark.matches ? "dark" : "light"];

const outline = (index, colour) => ({
  type: "rect", xref: "x domain", yref: "y", x0: 0, x1: 1, y0: index - 0.5, y1: index + 0.5,
  line: { color: colour, width: 2 }, layer: "above",
});

const withTarget = (axis, row) => {
  const key = axis.labelalias && row !== null ? axis.categoryarray[row] : undefined;
  if (key === undefined) return axis;
  const name = `<b><span style="color:${theme().mark}">${axis.labelalias[key]}</span></b>`;
  return { ...axis, labelalias: { ...axis.labelalias, [key]: name } };
};

// Slanted labels of narrow columns would touch each other.
const smaller = (axis) => ({
  ...axis,
  tickfont: { ...axis.tickfont, size: Math.min(axis.tickfont.size, 10) },
  autotickangles: axis.categoryarray.length > 12 ? [0, -90] : axis.autotickangles,
});

// `of` is what the figure shows: where nothing of it has changed, the mark alone moves.
const draw = (id, of, frame, trace, scale, marked, onRow) => {
  const div = byId(id);
  const narrow = div.clientWidth < 460;
  const all = [page, theme(), narrow, ...of];
  if (isDrawn(id, all)) {
    Plotly.relayout(div, { shapes: [marked] });
    return;
  }
  const columns = withTarget(frame.layout.xaxis, frame.target);
  const layout = {
    ...frame.layout,
    template: theme().template,
    xaxis: narrow ? smaller(columns) : columns,
    yaxis: withTarget(frame.layout.yaxis, frame.target),
    margin: { l: 8, r: narrow ? 16 : 28, t: 8 },
    dragmode: false,
    shapes: [marked],
    coloraxis: { ...frame.scale, ...scale },
  };
  Plotly.react(div, [{ ...frame.trace, ...trace }], layout, CONFIG);
  if (!drawn.has(id)) div.on("plotly_click", (event) => onRow(event.points[0].pointNumber[0]));
  drawn.set(id, all);
};

const sequential = (most, view) => ({
  colorscale: theme().sequential, cmin: 0, cmax: most, colorbar: { title: { text: page.scaleNames[view] }, tickformat: ".2~p" },
});

const drawMaps = () => {
  const labels = unit();
  const most = largest(sides().flatMap(([, method]) => gridOf(method)));
  const customdata = labels.hover.map((dest) => labels.hover.map((source) => [dest, source]));
  sides().forEach(([side, method]) => {
    const id = `map-${side}`;
    const view = viewOf(method);
    const trace = { z: gridOf(method), customdata, hovertemplate: page.hover[view][state.layer] };
    const frame = { ...labels.map, target: targetRow() };
    const of = [trace.z, most, view, labels];
    draw(id, of, frame, trace, sequential(most, view), outline(rowOf(state.piece), theme().mark), chooseRow);
    const size = labels.names.length;
    byId(id).setAttribute("aria-label", `${method.label}: heat map of ${size} destinations and sources`);
  });
};

const drawRow = () => {
  const labels = unit();
  const row = rowOf(state.piece);
  const grid = maps[state.unit].value_zeroing.layer.map((layer) => layer[row]);
  const trace = { z: grid, customdata: page.layers.map(() => labels.hover), hovertemplate: labels.rowHover[row] };
  const frame = { ...labels.row, target: targetRow() };
  draw("row", [labels, row], frame, trace, sequential(largest(grid), "layer"), outline(state.layer, theme().accent), chooseLayer);
};

const drawEffect = () => {
  const effect = page.effects[state.effect];
  if (effect === undefined) return;
  const cells = { z: effect.z, customdata: effect.z.map(() => effect.sources), hovertemplate: effect.hovertemplate };
  const colours = { colorscale: theme().diverging };
  draw("effect", [effect], effect, cells, colours, outline(state.layer, theme().accent), chooseLayer);
  const joined = state.unit === "words" && page.units.words.names.length < page.units.pieces.names.length;
  byId("effect-note").hidden = !joined;
};
