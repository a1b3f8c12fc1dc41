// What of the maps is shown: sources that are hidden, a window around the chosen token, the scale of the colours.
const WINDOWS = [5, 10, 20]; // tokens on each side
const HIDDEN = { itself: "itself", special: "special tokens and punctuation" };

const ramp = () => theme()[state.scale === null ? "sequential" : "sequentialSqrt"];
const hiddenNames = () => Object.keys(HIDDEN).filter((name) => state[name] !== null).map((name) => HIDDEN[name]);
const hiddenNote = () => (hiddenNames().length === 0
  ? ""
  : `Hidden: ${hiddenNames().join(", ")}. Each row is renormalised: divided by what is left of it.`);
const scaleName = (view) => [
  [page.scaleNames[view], ...(hiddenNames().length === 0 ? [] : ["renormalised"]), ...(state.scale === null ? [] : ["square-root scale"])].join(", "),
  ...hiddenNames().slice(0, 1).map(() => `without ${hiddenNames().join(", ")}`),
].join("<br>");

const rowWithoutHidden = ({ aside }) => (row, dest) => {
  const isHidden = (source) => (state.itself !== null && source === dest) || (state.special !== null && aside[source]);
  const left = row.reduce((sum, value, source) => (isHidden(source) ? sum : sum + value), 0);
  return row.map((value, source) => (value === null || isHidden(source) ? null : value / (left || 1)));
};
// By layers of maps, and by what is hidden: computed once, so that what was drawn is known to be the same.
const computed = new WeakMap();
const withoutHidden = (layers, labels = unit()) => {
  if (hiddenNames().length === 0) return layers;
  const key = [state.unit, state.itself, state.special].join();
  if (!computed.has(layers)) computed.set(layers, new Map());
  const byKey = computed.get(layers);
  if (!byKey.has(key)) byKey.set(key, layers.map((grid) => grid.map(rowWithoutHidden(labels))));
  return byKey.get(key);
};

// The first and the last token in view.
const inWindow = (size, centre) => (state.window === null
  ? [0, size - 1]
  : [Math.max(0, centre - state.window), Math.min(size - 1, centre + state.window)]);
