"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const status = byId("status");
  const unpack = (id) => {
    const text = atob(byId(id).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  };
  if (!("DecompressionStream" in window)) {
    status.textContent = "This browser cannot unpack the figures: it needs Chrome 80, Firefox 113, Safari 16.4 or newer.";
    return;
  }

  const page = JSON.parse(byId("report-data").textContent);
  const [codes, plotly] = await Promise.all([unpack("report-maps").arrayBuffer(), unpack("plotly-js").text()]);
  const script = document.createElement("script");
  script.textContent = plotly;
  document.head.append(script);

  const METHODS = ["value_zeroing", "attention"];
  const VIEWS = ["layer", "rollout"];
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    modeBarButtons: [["zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  };
  // Decimal mantissas, then their exponents, little-endian: see decimal_codes in report_page.py.
  const readMaps = () => {
    const view = new DataView(codes);
    const count = codes.byteLength / 4;
    let next = 0;
    const number = () => {
      const mantissa = view.getInt16(2 * next, true);
      const exponent = view.getInt16(2 * (count + next), true);
      next += 1;
      return exponent < 0 ? mantissa / 10 ** -exponent : mantissa * 10 ** exponent;
    };
    const list = (length, item) => Array.from({ length }, item);
    const named = (names, item) => Object.fromEntries(names.map((name) => [name, item(name)]));
    return named(Object.keys(page.units), (name) => {
      const size = page.units[name].names.length;
      const map = () => list(size, () => list(size, number));
      return named(METHODS, () => named(VIEWS, () => list(page.layers.length, map)));
    });
  };
  const maps = readMaps();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // `piece` is always the position of a word piece, so that it survives a change to words and back.
  const state = { layer: 0, view: "layer", unit: "pieces", piece: page.start };
  const drawn = new Set();

  const unit = () => page.units[state.unit];
  const rowOf = (piece) => (state.unit === "words" ? page.wordOf[piece] : piece);
  const pieceOf = (row) => (state.unit === "words" ? page.wordOf.indexOf(row) : row);
  const theme = () => page.themes[dark.matches ? "dark" : "light"];
  const largest = (grid) => grid.reduce((most, row) => row.reduce((m, v) => (v > m ? v : m), most), 0) || 1;
  const shown = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

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

  const targetRow = () => (page.target === null ? null : rowOf(page.target));
  const sequential = (grid, view) => ({
    colorscale: theme().sequential, cmin: 0, cmax: largest(grid), colorbar: { title: { text: page.scaleNames[view] } },
  });

  const drawMaps = () => {
    const labels = unit();
    const grids = METHODS.map((method) => maps[state.unit][method][state.view][state.layer]);
    const scale = sequential(grids.flat(), state.view);
    const customdata = labels.hover.map((dest) => labels.hover.map((source) => [dest, source]));
    METHODS.forEach((method, i) => {
      const trace = { z: grids[i], customdata, hovertemplate: page.hover[state.view][state.layer] };
      const frame = { ...labels.map, target: targetRow() };
      draw(`map-${method}`, frame, trace, scale, outline(rowOf(state.piece), theme().mark), chooseRow);
      byId(`map-${method}`).setAttribute("aria-label", `Heat map of ${labels.names.length} destinations and sources`);
    });
  };

  const drawRow = () => {
    const labels = unit();
    const row = rowOf(state.piece);
    const grid = maps[state.unit].value_zeroing.layer.map((layer) => layer[row]);
    const trace = { z: grid, customdata: page.layers.map(() => labels.hover), hovertemplate: labels.rowHover[row] };
    const frame = { ...labels.row, target: targetRow() };
    draw("row", frame, trace, sequential(grid, "layer"), outline(state.layer, theme().accent), chooseLayer);
    byId("row-name").textContent = `${labels.names[row]} (${labels.place} ${labels.positions[row]})`;
  };

  const drawEffect = () => {
    if (page.effect === null) return;
    const { trace, z } = page.effect;
    const frame = { ...page.effect, target: page.target };
    const colours = { colorscale: theme().diverging };
    const cells = { z, customdata: z.map(() => trace.sources) };
    draw("effect", frame, cells, colours, outline(state.layer, theme().accent), chooseLayer);
    const joined = state.unit === "words" && page.units.words.names.length < page.units.pieces.names.length;
    byId("effect-note").hidden = !joined;
  };

  const fillNumbers = () => {
    const labels = unit();
    const row = rowOf(state.piece);
    const columns = METHODS.map((method) => maps[state.unit][method][state.view][state.layer][row]);
    const view = state.view === "layer" ? "layer" : "rollout up to layer";
    byId("numbers-caption").textContent =
      `Destination ${labels.names[row]} (${labels.place} ${labels.positions[row]}), ${view} ${page.layers[state.layer]}`;
    byId("numbers-body").replaceChildren(...labels.names.map((name, source) => {
      const line = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      const text = document.createElement("bdi");
      text.textContent = name;
      head.append(text);
      line.append(head, ...columns.map((values) => {
        const cell = document.createElement("td");
        cell.textContent = shown(values[source]);
        return cell;
      }));
      return line;
    }));
  };

  const fillDestinations = () => {
    const labels = unit();
    byId("destination").replaceChildren(...labels.names.map((name, row) => {
      const target = row === targetRow() ? " (target)" : "";
      return new Option(`${labels.positions[row]}: ${name}${target}`, String(row));
    }));
  };

  const showChoices = () => {
    byId("layer").value = String(state.layer);
    byId("layer-name").textContent = `${page.layers[state.layer]} (of ${page.layers[0]}–${page.layers.at(-1)})`;
    byId("layer").setAttribute("aria-valuetext", `layer ${page.layers[state.layer]}`);
    byId("destination").value = String(rowOf(state.piece));
    byId("maps-how").textContent = state.view === "layer"
      ? "Read along a row: it shows from which sources (columns) this layer builds that destination."
      : "Read along a row: it shows from which input tokens (columns) the layers up to this one together build that destination.";
  };

  const render = () => {
    showChoices();
    drawMaps();
    drawRow();
    drawEffect();
    fillNumbers();
  };
  const chooseRow = (row) => {
    state.piece = pieceOf(row);
    render();
  };
  const chooseLayer = (layer) => {
    state.layer = layer;
    render();
  };

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("layer").addEventListener("input", (event) => chooseLayer(Number(event.target.value)));
  byId("destination").addEventListener("change", (event) => chooseRow(Number(event.target.value)));
  for (const radio of document.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => {
      state[radio.name] = radio.value;
      if (radio.name === "unit") fillDestinations();
      render();
    });
  }
  dark.addEventListener("change", render);

  status.hidden = true;
  byId("controls").reset();
  fillDestinations();
  render();
})();
