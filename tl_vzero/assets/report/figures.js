const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtons: [["zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
};
const LABELS = 60; // pixels: of those above a map and the scale below it, less those beside it
// By figure: what it was last drawn of. Drawing is most of the time between a choice and its picture.
const drawn = new Map();
const isDrawn = (id, of) => {
  const last = drawn.get(id);
  return last !== undefined && last.length === of.length && of.every((part, i) => part === last[i]);
};

const LABELS_WIDTH = 110; // pixels, of the labels beside a map
const STACKED_ABOVE = 72; // tokens in view: larger maps stand below each other
const UPRIGHT_BELOW = 14; // pixels a column: then labels above stand upright, and not all have room
const theme = () => page.themes[dark.matches ? "dark" : "light"];

const outline = (index, colour) => ({
  type: "rect", xref: "x domain", yref: "y", x0: 0, x1: 1, y0: index - 0.5, y1: index + 0.5,
  line: { color: colour, width: 2 }, layer: "above",
});

// The chosen token is labelled in any case: where there is little room, plotly leaves labels out.
const chosenLabels = (id, axis, row, [first, last], target = targetRow()) => {
  const label = {
    text: `<b>${axis.labelalias[axis.categoryarray[row]]}</b>`, showarrow: false, bgcolor: theme().panel, borderpad: 1,
    font: { size: axis.tickfont.size, color: row === target ? theme().mark : theme().ink },
  };
  const above = { ...label, x: row, yref: "y domain", y: 1, yanchor: "bottom", yshift: 2, textangle: -90 };
  const beside = { ...label, xref: "x domain", x: 0, xanchor: "right", xshift: -2, y: row };
  const upright = (byId(id).clientWidth - LABELS_WIDTH) / (last - first + 1) < UPRIGHT_BELOW;
  return upright ? [beside, above] : [beside];
};

const withTarget = (axis, row) => {
  const key = axis.labelalias && row !== null ? axis.categoryarray[row] : undefined;
  if (key === undefined) return axis;
  const name = `<b><span style="color:${theme().mark}">${axis.labelalias[key]}</span></b>`;
  return { ...axis, labelalias: { ...axis.labelalias, [key]: name } };
};

// Cells of a part need not be square: with an anchor, plotly would show more than the part.
const windowed = (axis, [first, last]) => (state.window === null
  ? axis
  : { ...axis, scaleanchor: undefined, autorange: false, range: axis.autorange === "reversed" ? [last + 0.5, first - 0.5] : [first - 0.5, last + 0.5] });

// Slanted labels of narrow columns would touch each other.
const smaller = (axis) => ({
  ...axis,
  tickfont: { ...axis.tickfont, size: Math.min(axis.tickfont.size, 10) },
  autotickangles: axis.categoryarray.length > 12 ? [0, -90] : axis.autotickangles,
});

// `of` is what the figure shows: where nothing of it has changed, the marks alone move.
const draw = (id, of, frame, trace, scale, marks, onRow) => {
  const div = byId(id);
  const narrow = div.clientWidth < 460;
  const all = [page, theme(), narrow, state.scale, hiddenNote(), ...frame.columns, ...of];
  if (isDrawn(id, all)) {
    Plotly.relayout(div, marks);
    return;
  }
  const columns = windowed(withTarget(frame.layout.xaxis, frame.target), frame.columns);
  const layout = {
    ...frame.layout,
    template: theme().template,
    xaxis: narrow ? smaller(columns) : { ...columns },
    yaxis: { ...withTarget(frame.layout.yaxis, frame.target) }, // plotly writes into what it is given
    // Square cells are as high as they are wide: a narrow figure is a low one.
    height: columns.constrain ? Math.min(frame.layout.height, div.clientWidth + LABELS) : frame.layout.height,
    margin: { l: 8, r: narrow ? 16 : 28, t: 8 },
    dragmode: false,
    ...marks,
    coloraxis: { ...frame.scale, ...scale },
  };
  Plotly.react(div, [{ ...frame.trace, ...trace }], layout, CONFIG);
  if (!drawn.has(id)) div.on("plotly_click", (event) => onRow(event.points[0].pointNumber[0]));
  drawn.set(id, all);
};

const sequential = (most, view) => ({
  colorscale: ramp(), cmin: 0, cmax: most, colorbar: { title: { text: scaleName(view) }, tickformat: ".2~p" },
});

const CELL = { least: 12, most: 34, all: 560 }; // pixels, as in plot/maps.py
const rowsHeight = (rows) => Math.max(110, rows * Math.min(CELL.most, Math.max(CELL.least, Math.floor(CELL.all / rows))));
const mapFrame = (labels, columns, target = targetRow()) => {
  const { trace, layout } = labels.map;
  const height = layout.height - rowsHeight(labels.names.length) + rowsHeight(columns[1] - columns[0] + 1);
  return { trace, layout: { ...layout, height, yaxis: windowed(layout.yaxis, columns) }, target, columns };
};

const hoverOf = (method, view) => {
  const box = page.hover[view][state.layer];
  return chosenHead(method) === undefined ? box : box.replace(inLayer(), inView());
};
const drawMaps = () => {
  const labels = unit();
  const most = largest(sides().flatMap(([, method]) => gridOf(method)));
  const customdata = labels.hover.map((dest) => labels.hover.map((source) => [dest, source]));
  const row = rowOf(state.piece);
  const columns = inWindow(labels.names.length, row);
  sides().forEach(([side, method]) => {
    const id = `map-${side}`;
    const view = viewOf(method);
    const trace = { z: gridOf(method), customdata, hovertemplate: hoverOf(method, view) };
    const of = [trace.z, most, view, labels, byId(id).clientWidth];
    const marks = {
      shapes: [outline(row, theme().mark)],
      annotations: chosenLabels(id, labels.map.layout.xaxis, row, columns),
    };
    draw(id, of, mapFrame(labels, columns), trace, sequential(most, view), marks, chooseRow);
    const size = labels.names.length;
    byId(id).setAttribute("aria-label", `${method.label}: heat map of ${size} destinations and sources`);
  });
};

const layerMark = () => ({ shapes: [outline(state.layer, theme().accent)] });
const drawRow = () => {
  const labels = unit();
  const row = rowOf(state.piece);
  const grid = withoutHidden(chosenHead(page.methods[0]) ?? maps[state.unit].value_zeroing.layer).map((layer) => layer[row]);
  const trace = { z: grid, customdata: page.layers.map(() => labels.hover), hovertemplate: labels.rowHover[row] };
  const frame = { ...labels.row, target: targetRow(), columns: inWindow(labels.names.length, row) };
  draw("row", [labels, row, state.head], frame, trace, sequential(largest(grid), "layer"), layerMark(), chooseLayer);
};

const drawEffect = () => {
  const effect = page.effects[state.effect];
  if (effect === undefined) return;
  const cells = { z: effect.z, customdata: effect.z.map(() => effect.sources), hovertemplate: effect.hovertemplate };
  const colours = { colorscale: theme().diverging };
  const frame = { ...effect, columns: inWindow(effect.sources.length, state.piece) };
  draw("effect", [effect], frame, cells, colours, layerMark(), chooseLayer);
  const joined = state.unit === "words" && page.units.words.names.length < page.units.pieces.names.length;
  byId("effect-note").hidden = !joined;
};

// Paper is narrower than a screen, and a figure does not follow it by itself.
const PRINTED_WIDTH = 600;
window.addEventListener("beforeprint", () => drawn.forEach((_, id) => {
  if (byId(id).clientWidth > PRINTED_WIDTH) Plotly.relayout(id, { width: PRINTED_WIDTH });
}));
window.addEventListener("afterprint", () => drawn.forEach((_, id) => Plotly.relayout(id, { width: null, autosize: true })));
