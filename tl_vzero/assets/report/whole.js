// A report of one sentence, whole in its page.
if (!await loadPlotly()) return;
byId("controls").reset();

// The address says the choices behind "#", so that a view can be linked to.
addressed = () => Object.fromEntries(
  Object.entries({ ...state, layer: page.layers[state.layer] }).filter(([, value]) => value !== null),
);
const wantedOf = ({ layers }) => {
  const { layer, ...others } = linked();
  for (const name of ["piece", "threshold", "head"]) if (name in others) others[name] = Number(others[name]);
  return { ...others, layer: layers.indexOf(Number(layer ?? NaN)) };
};
const data = JSON.parse(byId("report-data").textContent);
await show({ data, maps: byId("report-maps").textContent, parts: {}, beside: data.beside }, wantedOf(data));
arrive();
window.addEventListener("hashchange", () => {
  Object.assign(state, chosenAtFirst(wantedOf(page)));
  fillDestinations();
  render();
  arrive();
});
