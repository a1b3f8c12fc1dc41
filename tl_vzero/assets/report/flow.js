// The rollout of the chosen destination taken apart, as plot/flows.py does for notebooks.
const showThreshold = () => {
  const { bounds } = page.flow;
  const slider = byId("threshold");
  slider.max = String(bounds.length - 1);
  slider.value = String(bounds.indexOf(state.threshold));
  slider.setAttribute("aria-valuetext", percent(state.threshold));
  byId("threshold-name").textContent = percent(state.threshold);
};

// nodes[l][i]: how much of what reaches the destination is in token i below layer l; edges[l][i][j]: how much goes from
// j into i in layer l. A word is reached by the average of its pieces.
const flowInto = (pieces) => {
  const steps = maps.pieces.value_zeroing.layer;
  const size = steps[0].length;
  let below = Array.from({ length: size }, (_, i) => (pieces.includes(i) ? 1 / pieces.length : 0));
  const nodes = [below];
  const edges = [];
  for (const step of [...steps].reverse()) {
    const above = below;
    const taken = step.map((row, dest) => row.map((value) => value * above[dest]));
    below = taken.reduce((sums, row) => sums.map((sum, source) => sum + row[source]), new Array(size).fill(0));
    nodes.unshift(below);
    edges.unshift(taken);
  }
  return { nodes, edges };
};

const overWords = ({ nodes, edges }) => {
  const size = page.units.words.names.length;
  const joined = (row) => {
    const sums = new Array(size).fill(0);
    row.forEach((value, piece) => { sums[page.wordOf[piece]] += value; });
    return sums;
  };
  const square = (grid) => {
    const sums = Array.from({ length: size }, () => new Array(size).fill(0));
    grid.forEach((row, dest) => joined(row).forEach((value, word) => { sums[page.wordOf[dest]][word] += value; }));
    return sums;
  };
  return { nodes: nodes.map(joined), edges: edges.map(square) };
};

const CURVE = Array.from({ length: 17 }, (_, i) => i / 16);
const curve = ({ layer, dest, source }) => (dest === source
  ? { x: [source, dest, null], y: [layer, layer + 1, null] }
  : {
    x: [...CURVE.map((t) => source + (dest - source) * t * t * (3 - 2 * t)), null], // upright at both ends
    y: [...CURVE.map((t) => layer + t), null],
  });
const percent = (share) => `${shown(Number((100 * share).toPrecision(3)))} %`;

const edgeTraces = (edges, lines) => page.flow.bounds.map((bound, i) => {
  const next = page.flow.bounds[i + 1] ?? Infinity;
  const curves = edges.filter(({ share }) => share >= bound && share < next).map(curve);
  return {
    type: "scatter", mode: "lines", line: lines[i], hoverinfo: "skip",
    x: curves.flatMap(({ x }) => x), y: curves.flatMap(({ y }) => y),
  };
});

const middles = (edges, hover) => ({
  type: "scatter", mode: "markers", marker: { size: 12, opacity: 0 },
  x: edges.map(({ dest, source }) => (dest + source) / 2),
  y: edges.map(({ layer }) => layer + 0.5),
  customdata: edges.map(({ layer, dest, source, share }) => [percent(share), hover[source], hover[dest], page.layers[layer]]),
  hovertemplate: "<b>%{customdata[0]}</b>  layer %{customdata[3]}<br>source  %{customdata[1]}<br>destination  %{customdata[2]}<extra></extra>",
});

const nodeTrace = (nodes, bound, hover) => {
  const [smallest, widest] = page.flow.nodes;
  // The largest are drawn last, over their neighbours.
  const placed = nodes.flatMap((row, level) => row.map((share, token) => ({ level, token, share })));
  placed.sort((one, other) => one.share - other.share);
  return {
    type: "scatter", mode: "markers", cliponaxis: false,
    x: placed.map(({ token }) => token),
    y: placed.map(({ level }) => level),
    marker: {
      size: placed.map(({ share }) => smallest + (widest - smallest) * Math.sqrt(share)),
      color: placed.map(({ share }) => (share >= bound ? theme().mark : theme().line)),
      line: { width: placed.map(({ share }) => (share >= bound ? 1 : 0)), color: theme().panel },
      opacity: 1,
    },
    customdata: placed.map(({ share, token }) => [percent(share), hover[token]]),
    hovertemplate: "<b>%{customdata[0]}</b> of what reaches the destination<br>%{customdata[1]}<extra></extra>",
  };
};

// A long sentence has no room for all its labels: those stay through which something flows.
const fewLabels = (nodes, bound) => {
  const tokens = [...nodes[0].keys()];
  if (tokens.length <= page.flow.labelledAll) return {};
  return { tickmode: "array", tickvals: tokens.filter((token) => nodes.some((row) => row[token] >= bound)) };
};

const drawFlow = () => {
  if (page.flow === null) return;
  showThreshold();
  const bound = state.threshold;
  const words = state.unit === "words";
  const row = rowOf(state.piece);
  const div = byId("flow");
  const of = [page, theme(), words, row, bound, div.clientWidth < 460];
  if (isDrawn("flow", of)) return;
  const pieces = words ? [...page.wordOf.keys()].filter((piece) => page.wordOf[piece] === row) : [row];
  const flow = words ? overWords(flowInto(pieces)) : flowInto(pieces);
  const edges = flow.edges.flatMap((grid, layer) => grid.flatMap((shares, dest) => shares.flatMap(
    (share, source) => (share >= bound ? [{ layer, dest, source, share }] : []),
  )));
  const { hover } = unit();
  const traces = [...edgeTraces(edges, theme().lines), middles(edges, hover), nodeTrace(flow.nodes, bound, hover)];
  const frame = page.flow.layouts[state.unit];
  const narrow = div.clientWidth < 460 ? { tickfont: { size: 9 }, tickangle: -90 } : {};
  const xaxis = { ...frame.xaxis, ...narrow, ...fewLabels(flow.nodes, bound) };
  Plotly.react(div, traces, { ...frame, xaxis, template: theme().template, dragmode: false }, CONFIG);
  if (!drawn.has("flow")) {
    div.on("plotly_click", ({ points }) => {
      const node = points.find(({ curveNumber }) => curveNumber === div.data.length - 1);
      if (node !== undefined) chooseRow(node.x);
    });
  }
  drawn.set("flow", of);
};
