// The rollout of the chosen destination taken apart, as plot/flows.py does for notebooks.
const TOPS = ["1", "2", "3", "5", "all"]; // lines from a token down
const showThreshold = () => {
  const { bounds } = page.flow;
  const slider = byId("threshold");
  slider.max = String(bounds.length - 1);
  slider.value = String(bounds.indexOf(state.threshold));
  slider.setAttribute("aria-valuetext", inPercent(state.threshold));
  byId("threshold-name").textContent = inPercent(state.threshold);
  byId("top").value = state.top;
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

// The lines that are drawn, layer by layer: from the chosen token down, each token that is reached goes on along its
// `top` largest edges of at least `bound`, and in any case along its largest, so that no path breaks off before the input.
const connected = (edges, row, bound, top) => {
  let reached = new Set([row]);
  const down = edges.map(() => []);
  for (let layer = edges.length - 1; layer >= 0; layer -= 1) {
    for (const dest of reached) {
      const ranked = edges[layer][dest].map((share, source) => ({ layer, dest, source, share }))
        .filter(({ share }) => share > 0).sort((one, other) => other.share - one.share);
      down[layer].push(...ranked.slice(0, top).filter(({ share }, rank) => rank === 0 || share >= bound));
    }
    reached = new Set(down[layer].map(({ source }) => source));
  }
  // Nothing goes on from a token whose row is empty.
  return down.map((lines) => {
    const whole = lines.filter(({ layer, source }) => layer === 0 || reached.has(source));
    reached = new Set(whole.map(({ dest }) => dest));
    return whole;
  });
};

// What goes on from the tokens on the paths along edges that are not drawn.
const droppedShares = (nodes, lines) => lines.flatMap((drawn, layer) => {
  const left = new Map(drawn.map(({ dest }) => [dest, nodes[layer + 1][dest]]));
  for (const { dest, share } of drawn) left.set(dest, left.get(dest) - share);
  return [...left].map(([token, share]) => ({ level: layer + 1, token, share })).filter(({ share }) => share >= LEAST_STUB);
});

// The path that lights up with an edge: up and down along the strongest line that is drawn at each token.
const pathThrough = (lines, edge) => {
  const strongest = (some) => some.reduce((best, other) => (other.share > best.share ? other : best));
  const path = [edge];
  for (const above of lines.slice(edge.layer + 1)) {
    path.push(strongest(above.filter(({ source }) => source === path.at(-1).dest)));
  }
  for (const below of lines.slice(0, edge.layer).reverse()) {
    path.unshift(strongest(below.filter(({ dest }) => dest === path[0].source)));
  }
  return path;
};
const edgeAt = (lines, { level, token }) => {
  const [layer, end] = level === 0 ? [0, "source"] : [level - 1, "dest"];
  const touching = lines[layer].filter((edge) => edge[end] === token);
  return touching.sort((one, other) => other.share - one.share)[0];
};

const CURVE = Array.from({ length: 25 }, (_, i) => i / 24);
const curve = ({ layer, dest, source }) => (dest === source
  ? { x: [source, dest, null], y: [layer, layer + 1, null] }
  : {
    x: [...CURVE.map((t) => source + (dest - source) * t * t * (3 - 2 * t)), null], // upright at both ends
    y: [...CURVE.map((t) => layer + t), null],
  });
// In boxes, which have more digits than what stands on the page.
const percent = (share) => `${shown(Number((100 * share).toPrecision(3)))} %`;

const edgeTraces = (edges, lines) => page.flow.bounds.map((bound, i) => {
  const [low, high] = [i === 0 ? 0 : bound, page.flow.bounds[i + 1] ?? Infinity];
  const curves = edges.filter(({ share }) => share >= low && share < high).map(curve);
  return {
    type: "scatter", mode: "lines", line: lines[i], hoverinfo: "skip",
    x: curves.flatMap(({ x }) => x), y: curves.flatMap(({ y }) => y),
  };
});

// A faint stub for what is dropped, with its share where it is large; its end has a point for the pointer.
const LEAST_STUB = 0.001;
const NO_LABEL = "\u00a0"; // where a label was empty once, plotly writes none later
const stubTraces = (stubs, labelled, hover) => [
  {
    type: "scatter", mode: "lines", line: { width: 2, dash: "dot", color: theme().line }, hoverinfo: "skip",
    x: stubs.flatMap(({ token }) => [token, token + page.flow.stub, null]),
    y: stubs.flatMap(({ level }) => [level, level - page.flow.stub, null]),
  },
  {
    type: "scatter", mode: "markers+text", marker: { size: 8, opacity: 0 }, cliponaxis: false,
    textposition: "middle right", textfont: { size: 10, color: theme().muted },
    x: stubs.map(({ token }) => token + page.flow.stub),
    y: stubs.map(({ level }) => level - page.flow.stub),
    text: stubs.map((stub) => (labelled.includes(stub) ? inPercent(stub.share) : NO_LABEL)),
    customdata: stubs.map(({ share, token }) => [percent(share), hover[token]]),
    hovertemplate: "<b>%{customdata[0]}</b> goes on along edges that are not drawn<br>%{customdata[1]}<extra></extra>",
  },
];

const middles = (edges, hover) => ({
  type: "scatter", mode: "markers", marker: { size: 12, opacity: 0 },
  x: edges.map(({ dest, source }) => (dest + source) / 2),
  y: edges.map(({ layer }) => layer + 0.5),
  customdata: edges.map(({ layer, dest, source, share }) => [percent(share), hover[source], hover[dest], page.layers[layer]]),
  hovertemplate: "<b>%{customdata[0]}</b>  layer %{customdata[3]}<br>source  %{customdata[1]}<br>destination  %{customdata[2]}<extra></extra>",
});

const nodesOf = (nodes, lines) => {
  const onPath = new Set(lines.flat().flatMap(({ layer, dest, source }) => [`${layer} ${source}`, `${layer + 1} ${dest}`]));
  const placed = nodes.flatMap((row, level) => row.map((share, token) => ({ level, token, share, onPath: onPath.has(`${level} ${token}`) })));
  return placed.sort((one, other) => one.share - other.share); // the largest are drawn last, over their neighbours
};

const nodeTrace = (placed, hover) => {
  const [smallest, widest] = page.flow.nodes;
  return {
    type: "scatter", mode: "markers", cliponaxis: false,
    x: placed.map(({ token }) => token),
    y: placed.map(({ level }) => level),
    marker: {
      size: placed.map(({ share }) => smallest + (widest - smallest) * Math.sqrt(share)),
      color: placed.map(({ onPath }) => (onPath ? theme().mark : theme().line)),
      line: { width: placed.map(({ onPath }) => (onPath ? 1 : 0)), color: theme().panel },
      opacity: 1,
    },
    customdata: placed.map(({ share, token }) => [percent(share), hover[token]]),
    hovertemplate: "<b>%{customdata[0]}</b> of what reaches the destination<br>%{customdata[1]}<extra></extra>",
  };
};

// As many as there is room for, the largest first: `width` is what one needs, in tokens.
const withRoom = (items, width) => [...items].sort((one, other) => other.share - one.share).reduce((placed, item) => (
  placed.some(({ level, token }) => level === item.level && Math.abs(token - item.token) < width) ? placed : [...placed, item]
), []);
// A long sentence has no room for all its labels: those stay through which a path goes, the chosen token's in any case.
const fewLabels = (placed, size, width) => (size <= page.flow.labelledAll
  ? {}
  : {
    tickmode: "array",
    tickvals: withRoom(placed.filter(({ onPath }) => onPath).map((node) => ({ ...node, level: 0 })), width).map(({ token }) => token),
  });

// Of the graph that is drawn: its lines, and what lies behind the points of its traces.
let flowDrawn = null;
const light = (path) => {
  const names = path.map(({ source }) => unit().names[source]).concat(unit().names[path.at(-1).dest]);
  byId("flow-lit").textContent = `From the input up: ${names.map((name) => `\u2068${name}\u2069`).join(" → ")}`;
  // The same curves as those of the lines, as Bézier curves.
  const shapes = path.map(({ layer, dest, source }) => ({
    type: "path", line: { color: theme().mark, width: 4 }, opacity: 0.9,
    path: `M ${source},${layer} C ${source},${layer + 1 / 3} ${dest},${layer + 2 / 3} ${dest},${layer + 1}`,
  }));
  Plotly.relayout(byId("flow"), { shapes });
};
const dim = () => {
  byId("flow-lit").textContent = "";
  Plotly.relayout(byId("flow"), { shapes: [] });
};
const pointedEdge = ({ curveNumber, pointNumber }) => {
  const fromEnd = byId("flow").data.length - 1 - curveNumber;
  if (fromEnd === 0 && flowDrawn.placed[pointNumber].onPath) return edgeAt(flowDrawn.lines, flowDrawn.placed[pointNumber]);
  return fromEnd === 1 ? flowDrawn.lines.flat()[pointNumber] : undefined;
};
const onFlow = (div) => {
  div.on("plotly_click", ({ points }) => {
    const node = points.find(({ curveNumber }) => curveNumber === div.data.length - 1);
    if (node !== undefined) chooseRow(node.x);
  });
  div.on("plotly_hover", ({ points }) => {
    const edge = points.map(pointedEdge).find((pointed) => pointed !== undefined);
    if (edge !== undefined) light(pathThrough(flowDrawn.lines, edge));
  });
  div.on("plotly_unhover", dim);
};

// The strongest way from each of the inputs that bring most, for the keyboard and for who sees no graph.
const PATHS = 4;
const fillPaths = (nodes, lines) => {
  const inputs = [...new Set(lines[0].map(({ source }) => source))].sort((one, other) => nodes[0][other] - nodes[0][one]);
  byId("flow-paths").replaceChildren(...inputs.slice(0, PATHS).map((token) => {
    const button = element("button", `${unit().names[token]} ${inPercent(nodes[0][token])}`, { type: "button", dir: "auto" });
    const lit = () => light(pathThrough(lines, edgeAt(lines, { level: 0, token })));
    button.addEventListener("focus", lit);
    button.addEventListener("pointerenter", lit);
    button.addEventListener("blur", dim);
    button.addEventListener("pointerleave", dim);
    return button;
  }));
};

const drawFlow = () => {
  if (page.flow === null) return;
  showThreshold();
  const bound = state.threshold;
  const words = state.unit === "words";
  const row = rowOf(state.piece);
  const div = byId("flow");
  const of = [page, theme(), words, row, bound, state.top, div.clientWidth < 460];
  if (isDrawn("flow", of)) return;
  const pieces = words ? [...page.wordOf.keys()].filter((piece) => page.wordOf[piece] === row) : [row];
  const apart = flowInto(pieces);
  const { nodes, edges } = words ? overWords(apart) : apart;
  const lines = connected(edges, row, bound, state.top === "all" ? Infinity : Number(state.top));
  const placed = nodesOf(nodes, lines);
  flowDrawn = { lines, placed };
  const { hover } = unit();
  const size = nodes[0].length;
  const tokens = (pixels) => (pixels * size) / (div.clientWidth - LABELS_WIDTH);
  const stubs = droppedShares(nodes, lines);
  const traces = [
    ...stubTraces(stubs, withRoom(stubs.filter(({ share }) => share >= bound), tokens(42)), hover),
    ...edgeTraces(lines.flat(), theme().lines),
    middles(lines.flat(), hover),
    nodeTrace(placed, hover),
  ];
  const frame = page.flow.layouts[state.unit];
  const narrow = div.clientWidth < 460 ? { tickfont: { size: 9 }, tickangle: -90 } : {};
  const xaxis = { ...frame.xaxis, ...narrow, ...fewLabels(placed, size, tokens(11)) };
  Plotly.react(div, traces, { ...frame, xaxis, template: theme().template, dragmode: false }, CONFIG);
  if (!drawn.has("flow")) onFlow(div);
  drawn.set("flow", of);
  fillPaths(nodes, lines);
  byId("flow-lit").textContent = "";
};
