// Every layer as a small picture; one is chosen.
const picture = (canvas, grid) => {
  const size = grid.length;
  canvas.width = size;
  canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const most = largest(grid);
  grid.forEach((row, dest) => row.forEach((value, source) => {
    if (value !== null) image.data.set([...shadeOf(value, most), 255], 4 * (dest * size + source));
  }));
  context.putImageData(image, 0, 0);
};

const layerButtons = () => page.layers.map((layer) => {
  const button = element("button", "", { type: "button" });
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", `layer ${layer}`);
  button.append(document.createElement("canvas"), element("span", String(layer)));
  return button;
});

const strips = new Map();
const drawStrip = (side, method) => {
  const box = byId(`strip-${side}`);
  const layers = layersOf(method);
  const colours = theme();
  const last = strips.get(box);
  if (last?.layers !== layers || last.colours !== colours) {
    strips.set(box, { layers, colours });
    if (box.childElementCount !== layers.length) box.replaceChildren(...layerButtons());
    [...box.children].forEach((button, layer) => {
      button.setAttribute("aria-label", `layer ${page.layers[layer]}`);
      button.lastChild.textContent = page.layers[layer];
      picture(button.firstChild, layers[layer]);
    });
  }
  markChoice(box, state.layer);
  if (side === "beside") for (const button of box.children) button.tabIndex = -1;
};
const drawStrips = () => {
  for (const [side, method] of sides()) drawStrip(side, method);
  byId("strip-beside-name").textContent = beside().label;
};

for (const side of ["value_zeroing", "beside"]) asChoice(byId(`strip-${side}`), (layer) => chooseLayer(layer));
