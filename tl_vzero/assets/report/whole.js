// A report of one sentence, whole in its page.
const packed = byId("plotly-js");
if (packed !== null) {
  const script = document.createElement("script");
  script.textContent = await unpack(packed.textContent).text();
  document.head.append(script);
}
if (!("Plotly" in window)) {
  byId("status").textContent = "The figures cannot be drawn: plotly.min.js, which belongs beside this page, is missing.";
  return;
}
byId("controls").reset();
await show({ data: JSON.parse(byId("report-data").textContent), maps: byId("report-maps").textContent, parts: {} }, {});
