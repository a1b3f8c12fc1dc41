// Every layer as a small picture; one is chosen.
const WIDTH = 76; // as in page.css; a larger map is shrunk smoothly, so that no row of it is dropped
const picture = (canvas, grid, most = largest(grid)) => {
  const size = grid[0].length; // columns; a row alone is a picture, too
  canvas.style.imageRendering = size > WIDTH ? "auto" : "pixelated";
  canvas.width = size;
  canvas.height = grid.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, grid.length);
  // One number a pixel: a page has half a million of them.
  const palette = Uint32Array.from(shades(), ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  const pixels = new Uint32Array(image.data.buffer);
  grid.forEach((row, dest) => row.forEach((value, source) => {
    if (value !== null) pixels[dest * size + source] = palette[shadeAt(value, most)];
  }));
  context.putImageData(image, 0, 0);
};

const layerChoices = (side) => page.layers.map(() => {
  const choice = choiceOf(side, "");
  choice.append(document.createElement("canvas"), element("span", ""));
  return choice;
});

const strips = new Map();
const drawStrip = (side, method) => {
  const box = byId(`strip-${side}`);
  const layers = layersOf(method);
  const colours = ramp();
  const last = strips.get(box);
  if (last?.layers !== layers || last.colours !== colours) {
    strips.set(box, { layers, colours });
    if (box.childElementCount !== layers.length) box.replaceChildren(...layerChoices(side));
    [...box.children].forEach((choice, layer) => {
      if (side !== "beside") choice.setAttribute("aria-label", `layer ${page.layers[layer]}`);
      choice.lastChild.textContent = page.layers[layer];
      picture(choice.firstChild, layers[layer]);
    });
  }
  markChoice(box, state.layer);
};
const drawStrips = () => {
  for (const [side, method] of sides()) drawStrip(side, method);
  byId("strip-beside-name").textContent = beside().label;
};

asChoice(byId("strip-value_zeroing"), (layer) => chooseLayer(layer));
asPointed(byId("strip-beside"), (layer) => chooseLayer(layer));
