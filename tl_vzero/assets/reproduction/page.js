const status = document.getElementById("status");
if (!("DecompressionStream" in window)) {
  status.textContent = "This browser cannot unpack the figures: it needs Chrome 80, Firefox 113, Safari 16.4 or newer.";
  return;
}

const page = JSON.parse(document.getElementById("page-data").textContent);
const packed = Uint8Array.from(atob(document.getElementById("plotly-js").textContent), (letter) => letter.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const script = document.createElement("script");
script.textContent = await new Response(unpacked).text();
document.head.append(script);

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll(".plot")];
const chosen = (id) => [...document.querySelectorAll(`select[data-figure="${id}"]`)].map((select) => select.value).join("|");

const draw = (plot) => {
  const id = plot.id.replace("figure-", "");
  const scheme = dark.matches ? "dark" : "light";
  if (!(id in page.figures)) {
    plot.textContent = "Not measured; the reason stands below, under the sentences.";
    return undefined;
  }
  const { data, layout } = page.figures[id][chosen(id)][scheme];
  const narrow = plot.clientWidth < 620;
  // A legend beside the lines leaves them no room on a phone.
  const legend = narrow ? { orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" } : layout.legend;
  const height = narrow && data.length > 6 ? layout.height + 160 : layout.height;
  const whole = { ...layout, legend, height, template: page.templates[scheme] };
  return Plotly.react(plot, data, whole, { responsive: true, displaylogo: false, displayModeBar: false });
};

for (const select of document.querySelectorAll("select[data-figure]")) {
  select.addEventListener("change", () => draw(document.getElementById(`figure-${select.dataset.figure}`)));
}
dark.addEventListener("change", () => plots.forEach(draw));
await Promise.all(plots.map(draw));
status.hidden = true;
