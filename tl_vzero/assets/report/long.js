// Rows of a long text: a figure for each destination, in the colours of the reader's scheme.
const page = JSON.parse(byId("report-data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
if (!canUnpack() || !await loadPlotly()) return;
const draw = ({ data, layouts, steps }, at) => {
  const scheme = dark.matches ? "dark" : "light";
  // Plotly changes what it is given when the slider moves.
  const figure = structuredClone({ data, layout: { ...layouts[scheme], template: page.templates[scheme] } });
  figure.layout.sliders[0].steps = steps;
  return Plotly.react(byId(`row-${at}`), figure.data, figure.layout, { responsive: true, displaylogo: false });
};
await Promise.all(page.rows.map(draw));
dark.addEventListener("change", () => page.rows.forEach(draw));
byId("status").hidden = true;
