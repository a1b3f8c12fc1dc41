const byId = (id) => document.getElementById(id);
const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
const unpack = (packed) => {
  const text = atob(packed);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};

// Decimal mantissas, then their exponents, little-endian: see decimal_codes in report/figures.py.
const readNumbers = (codes) => {
  const view = new DataView(codes);
  const count = codes.byteLength / 4;
  let next = 0;
  return () => {
    const mantissa = view.getInt16(2 * next, true);
    const exponent = view.getInt16(2 * (count + next), true);
    next += 1;
    return exponent < 0 ? mantissa / 10 ** -exponent : mantissa * 10 ** exponent;
  };
};

// maps[unit][method][view][layer][dest][src]; a method that has some destinations only has null in the other rows.
const readMaps = (page, codes) => {
  const number = readNumbers(codes);
  const list = (length, item) => Array.from({ length }, item);
  const map = (size, rows) => {
    const grid = list(size, () => list(size, () => null));
    for (const row of rows) grid[row] = list(size, number);
    return grid;
  };
  const maps = {};
  for (const unit of page.mapped) {
    const { positions } = page.units[unit];
    maps[unit] = {};
    for (const { name, views, rows } of page.methods) {
      const at = rows[unit].map((position) => positions.indexOf(position));
      const layers = () => list(page.layers.length, () => map(positions.length, at));
      maps[unit][name] = Object.fromEntries(views.map((view) => [view, layers()]));
    }
  }
  // Of heads: maps[unit].heads[method][head][layer][dest][src].
  for (const unit of page.heads?.absent === "" ? page.mapped : []) {
    const size = page.units[unit].positions.length;
    const layers = () => list(page.layers.length, () => map(size, [...Array(size).keys()]));
    const heads = () => list(page.heads.share[0].length, layers);
    maps[unit].heads = { value_zeroing: heads(), attention: heads() };
  }
  return { words: maps.pieces, ...maps };
};

const largest = (grid) => grid.reduce((most, row) => row.reduce((m, v) => (v > m ? v : m), most), 0) || 1;
const shown = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))).replace("-", "−"));
// A share as a percentage of at most two digits; where it stands, a title has it as `shown`.
const inPercent = (share) => {
  if (share === null) return "–";
  return share > 0 && share < 1e-4 ? "< 0.01 %" : `${Number((100 * share).toPrecision(2))} %`;
};
const rank = (value) => (value === null ? "–" : value.toFixed(2).replace("-", "−"));
const span = ([, low, high]) => (low === null ? "" : `${rank(low)} to ${rank(high)}`);
const capitalised = (text) => text[0].toUpperCase() + text.slice(1);

// The plotly.js of a whole page, packed in it or beside it; without it the page says so.
const loadPlotly = async () => {
  const packed = byId("plotly-js");
  if (packed !== null) {
    const script = document.createElement("script");
    script.textContent = await unpack(packed.textContent).text();
    document.head.append(script);
  }
  if ("Plotly" in window) return true;
  byId("status").textContent = "The figures cannot be drawn: plotly.min.js, which belongs beside this page, is missing.";
  return false;
};

const canUnpack = () => {
  if ("DecompressionStream" in window) return true;
  byId("status").textContent = "This browser cannot unpack the figures: it needs Chrome 80, Firefox 113, Safari 16.4 or newer.";
  return false;
};
