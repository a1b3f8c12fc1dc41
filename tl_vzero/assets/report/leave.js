// Every panel leaves the page: as a picture of what it shows now, as its numbers, or as a link to it.
const LEFT_OUT = ".leave, .modebar, .field, .choice, input, details:not([open])";
const PIXELS = 2; // of a PNG, for each of the page's
const LINK_SECONDS = 2;
const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;
const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

const xml = (text) => text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", "\"": "&quot;" })[sign]);
const attributes = (values) => Object.entries(values)
  .map(([name, value]) => `${name}="${typeof value === "number" ? Number(value.toFixed(2)) : xml(value)}"`).join(" ");

// A colour of a style as every program reads it; null for a clear one.
const colours = new Map();
const paint = (name, colour) => {
  if (!colours.has(colour)) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, opacity] = pen.getImageData(0, 0, 1, 1).data;
    colours.set(colour, opacity === 0 ? null : [`rgb(${r},${g},${b})`, opacity / 255]);
  }
  const [plain, opacity] = colours.get(colour) ?? ["none", 1];
  return { [name]: plain, ...(opacity < 1 ? { [`${name}-opacity`]: opacity } : {}) };
};

const boxOf = (style, { x, y, width, height }) => {
  const radius = { rx: Math.min(parseFloat(style.borderTopLeftRadius) || 0, width / 2, height / 2) };
  const stroke = (edge) => ({ ...paint("stroke", style[`${edge}Color`]), "stroke-width": parseFloat(style[`${edge}Width`]) });
  const has = (edge) => style[`${edge}Style`] !== "none" && parseFloat(style[`${edge}Width`]) > 0;
  const back = paint("fill", style.backgroundColor);
  const frame = has("outline") ? stroke("outline") : has("borderTop") ? stroke("borderTop") : {};
  const marks = [];
  if (back.fill !== "none" || "stroke" in frame) marks.push(`<rect ${attributes({ x, y, width, height, ...radius, ...back, ...frame })}/>`);
  if (has("borderBottom") && !has("borderTop")) {
    marks.push(`<line ${attributes({ x1: x, x2: x + width, y1: y + height, y2: y + height, ...stroke("borderBottom") })}/>`);
  }
  return marks;
};

const written = (text, style, { x, y, width, height }) => {
  pen.font = style.font;
  const { fontBoundingBoxAscent: above, fontBoundingBoxDescent: below } = pen.measureText(text);
  const font = { "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight };
  const place = { x, y: y + height * above / (above + below), textLength: width, lengthAdjust: "spacingAndGlyphs" };
  return `<text ${attributes({ ...place, ...font, ...paint("fill", style.color) })}>${xml(text)}</text>`;
};

// A text node's lines, as the browser broke them.
const linesOf = (node, at) => {
  const range = document.createRange();
  const lines = [];
  for (const { index, 0: word } of node.data.matchAll(/\S+/g)) {
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    const box = at(range);
    const line = lines.at(-1);
    if (line !== undefined && Math.abs(line.box.y - box.y) < 2) {
      const right = Math.max(line.box.x + line.box.width, box.x + box.width);
      line.text += ` ${word}`;
      line.box.x = Math.min(line.box.x, box.x);
      line.box.width = right - line.box.x;
    } else if (box.width > 0) lines.push({ text: word, box });
  }
  return lines;
};

// A panel as one SVG: boxes, texts and figures, each where it stands on the page.
const pictureOf = async (panel) => {
  const frame = panel.getBoundingClientRect();
  const marks = [];
  let right = frame.width;
  const at = (part) => {
    const { left, top, width, height } = part.getBoundingClientRect();
    right = Math.max(right, left - frame.left + width);
    return { x: left - frame.left, y: top - frame.top, width, height };
  };
  const add = async (node) => {
    if (node.nodeType === Node.TEXT_NODE) {
      const style = getComputedStyle(node.parentElement);
      marks.push(...linesOf(node, at).map(({ text, box }) => written(text, style, box)));
    }
    if (node.nodeType !== Node.ELEMENT_NODE || node.matches(LEFT_OUT)) return;
    const style = getComputedStyle(node);
    if (style.display === "none" || style.visibility === "hidden") return;
    const place = at(node);
    if (node.matches(".plot")) {
      const url = await Plotly.toImage(node, { format: "svg", width: place.width, height: place.height });
      const figure = decodeURIComponent(url.slice(url.indexOf(",") + 1));
      marks.push(figure.replace("<svg", `<svg ${attributes({ x: place.x, y: place.y })}`));
    } else if (node.matches("canvas")) {
      const sharp = { style: `image-rendering:${style.imageRendering}` };
      marks.push(`<image ${attributes({ ...place, href: node.toDataURL(), preserveAspectRatio: "none", ...sharp })}/>`);
    } else if (node.matches("select")) {
      const text = node.selectedOptions[0].text;
      pen.font = style.font;
      marks.push(written(text, style, { ...place, y: place.y + 8, width: pen.measureText(text).width, height: place.height - 16 }));
    } else {
      if (node !== panel) marks.push(...boxOf(style, place));
      for (const child of node.childNodes) await add(child);
    }
  };
  await add(panel);
  const below = panel.querySelector(".leave").getBoundingClientRect().top; // the buttons, which are left out
  const size = { width: Math.ceil(right), height: Math.ceil(below - frame.top) };
  const shape = { xmlns: SVG, ...size, viewBox: `0 0 ${size.width} ${size.height}` };
  const ground = `<rect ${attributes({ ...size, ...paint("fill", getComputedStyle(panel).backgroundColor) })}/>`;
  return { ...size, svg: `<svg ${attributes(shape)}>${[ground, ...marks].join("\n")}</svg>` };
};

const asPixels = async ({ svg, width, height }) => {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = element("canvas", "", { width: width * PIXELS, height: height * PIXELS });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
};

// The numbers of a panel, the first line its columns.
const placed = (row) => [unit().positions[row], unit().names[row]];
const pairs = () => sides().map(([, method]) => method);
const shares = (rows) => [
  ["layer", "destination position", "destination", "source position", "source",
    ...pairs().map((method) => `${method.label}, ${viewOf(method) === "rollout" ? "rolled out" : "share of the row"}`)],
  ...rows.flatMap((dest) => unit().names.map((_, source) => [
    page.layers[state.layer], ...placed(dest), ...placed(source), ...pairs().map((method) => gridOf(method)[dest][source]),
  ])),
];
const throughLayers = () => {
  const row = rowOf(state.piece);
  const effect = page.effects[state.effect];
  const both = effect !== undefined && effect.z[0].length === unit().names.length;
  return [
    ["layer", "source position", "source", "Value Zeroing, share of the row", ...(both ? [`${effect.label} at ${effect.target}`] : [])],
    ...page.layers.flatMap((layer, i) => unit().names.map((_, source) => [
      layer, ...placed(source), (chosenHead(page.methods[0]) ?? maps[state.unit].value_zeroing.layer)[i][row][source], ...(both ? [effect.z[i][source]] : []),
    ])),
  ];
};
const ofHeads = () => [
  ["layer", "head", "share of the layer's mixing", "source position", "source", "Value Zeroing, share of the row", "attention, share of the row"],
  ...(hasHeads() ? page.heads.share[state.layer] : []).flatMap((share, head) => unit().names.map((_, source) => [
    page.layers[state.layer], head, share, ...placed(source),
    ...["value_zeroing", "attention"].map((name) => headsOf({ name })[head][state.layer][rowOf(state.piece)][source]),
  ])),
];
const flowing = () => [
  ["layer", "destination position", "destination", "source position", "source", "share of what reaches the chosen token"],
  ...flowDrawn.lines.flat().map(({ layer, dest, source, share }) => [page.layers[layer], ...placed(dest), ...placed(source), share]),
];
const tabled = (panel) => [...panel.querySelectorAll("table tr")].map((line) => [...line.cells].map((cell) => cell.innerText));
const NUMBERS_OF = {
  finding: () => shares([rowOf(state.piece)]),
  text: () => shares([rowOf(state.piece)]),
  maps: () => shares([...unit().names.keys()]),
  heads: ofHeads,
  row: throughLayers,
  flow: flowing,
  beside: () => besideNumbers(),
};

// The coloured sentence where no style sheet is: colours stand at each token, as in plot/sentence.html and sentence.tex.
const sentences = () => [["Value Zeroing", "text-value_zeroing"], [beside().label, "text-beside"]].map(([label, id]) => [
  label,
  [...byId(id).children].map((token) => ({
    text: token.textContent,
    joins: token.classList.contains("joins"),
    chosen: token.classList.contains("chosen"),
    back: paint("fill", token.style.background === "none" ? theme().panel : token.style.background).fill,
    ink: paint("fill", getComputedStyle(token).color).fill,
  })),
]);
const inlineHtml = () => sentences().map(([label, tokens]) => `<p style="line-height:2.1">${xml(label)}:${tokens.map(
  ({ text, joins, chosen, back, ink }) => `${joins ? "" : " "}<span dir="auto" style="background:${back};color:${ink};padding:1px 4px;border-radius:4px;print-color-adjust:exact${chosen ? ";outline:2px solid" : ""}">${xml(text)}</span>`,
).join("")}</p>`).join("\n");

const LATEX_NAMES = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
const texOf = (text) => text.replace(/[\\~^#$%&_{}]/g, (sign) => LATEX_NAMES[sign] ?? `\\${sign}`);
const latex = () => ["% Needs \\usepackage{xcolor}; letters that pdfLaTeX lacks need LuaLaTeX or XeLaTeX.",
  "{\\setlength{\\fboxsep}{1.5pt}\\setlength{\\fboxrule}{1pt}\\raggedright",
  ...sentences().map(([label, tokens]) => `${texOf(label)}:${tokens.map(({ text, joins, chosen, back, ink }) => {
    const [ground, letters] = [back, ink].map((colour) => colour.slice(4, -1));
    const box = chosen ? `\\fcolorbox[RGB]{${rgbOf(theme().mark)}}` : "\\colorbox[RGB]";
    return `${joins ? "%\n" : "\n"}${box}{${ground}}{\\textcolor[RGB]{${letters}}{\\strut ${texOf(text)}}}`;
  }).join("")}\n\\par`), "}", ""].join("\n");

const csv = (lines) => lines.map((line) => line.map((value) => {
  const text = String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll("\"", "\"\"")}"` : text;
}).join(",")).join("\n");

const download = (name, content, type) => {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", "", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
};

// A link has the panel behind "#", and before it what an address says already; `addressed` adds to it.
let addressed = () => ({});
const linked = () => Object.fromEntries(new URLSearchParams(window.location.hash.slice(1)));
const nameOf = (panel) => panel.getAttribute("aria-labelledby").split("-")[0];
const panelsOf = () => [...document.querySelectorAll(".panel")];
const arrive = () => panelsOf().find((panel) => nameOf(panel) === linked().panel)?.scrollIntoView();
const link = async (panel, button) => {
  const address = new URL(window.location.href);
  address.hash = new URLSearchParams({ ...addressed(), panel: nameOf(panel) });
  window.history.replaceState(null, "", address);
  const copied = await navigator.clipboard?.writeText(address.href).then(() => true, () => false);
  button.textContent = copied ? "Link copied" : "Link is in the address bar";
  setTimeout(() => { button.textContent = "Link"; }, 1000 * LINK_SECONDS);
};

const WAYS = {
  PNG: async (panel, name) => download(`${name}.png`, await asPixels(await pictureOf(panel)), "image/png"),
  SVG: async (panel, name) => download(`${name}.svg`, (await pictureOf(panel)).svg, "image/svg+xml"),
  CSV: (panel, name) => download(`${name}.csv`, csv((NUMBERS_OF[nameOf(panel)] ?? (() => tabled(panel)))()), "text/csv"),
  Link: (panel, name, button) => link(panel, button),
};
const MORE_WAYS = {
  text: {
    HTML: (panel, name) => download(`${name}.html`, inlineHtml(), "text/html"),
    LaTeX: (panel, name) => download(`${name}.tex`, latex(), "application/x-tex"),
  },
};
for (const panel of panelsOf()) {
  const bar = element("p", "", { className: "leave" });
  bar.append(...Object.entries({ ...WAYS, ...MORE_WAYS[nameOf(panel)] }).map(([label, leave]) => {
    const button = element("button", label, { type: "button", title: label === "Link" ? "Copy a link to this panel" : `Save this panel as ${label}` });
    button.addEventListener("click", () => leave(panel, `tl-vzero-${nameOf(panel)}-layer-${page.layers[state.layer]}`, button));
    return button;
  }));
  panel.append(bar);
}
