const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
const drawn = new Set();

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

const draw = (id, frame, trace, scale, marked, onRow) => {
  const div = byId(id);
  const narrow = div.clientWidth < 460;
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
  if (!drawn.has(id)) {
    drawn.add(id);
    div.on("plotly_click", (event) => onRow(event.points[0].pointNumber[0]));
  }
};

const sequential = (most, view) => ({
  colorscale: theme().sequential, cmin: 0, cmax: most, colorbar: { title: { text: page.scaleNames[view] } },
});

const drawMaps = () => {
  const labels = unit();
  const pair = [page.methods[0], beside()];
  const most = largest(pair.flatMap(gridOf));
  const customdata = labels.hover.map((dest) => labels.hover.map((source) => [dest, source]));
  pair.forEach((method, side) => {
    const id = ["map-value_zeroing", "map-beside"][side];
    const view = viewOf(method);
    const trace = { z: gridOf(method), customdata, hovertemplate: page.hover[view][state.layer] };
    const frame = { ...labels.map, target: targetRow() };
    draw(id, frame, trace, sequential(most, view), outline(rowOf(state.piece), theme().mark), chooseRow);
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
  draw("row", frame, trace, sequential(largest(grid), "layer"), outline(state.layer, theme().accent), chooseLayer);
  byId("row-name").textContent = `${labels.names[row]} (${labels.place} ${labels.positions[row]})`;
};

const drawEffect = () => {
  const effect = page.effects[state.effect];
  if (effect === undefined) return;
  const cells = { z: effect.z, customdata: effect.z.map(() => effect.trace.sources) };
  const colours = { colorscale: theme().diverging };
  draw("effect", effect, cells, colours, outline(state.layer, theme().accent), chooseLayer);
  const joined = state.unit === "words" && page.units.words.names.length < page.units.pieces.names.length;
  byId("effect-note").hidden = !joined;
};
