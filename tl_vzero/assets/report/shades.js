const SHADES = 1024; // the square-root scale is steep at its start
const rgbOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const ramps = new Map();

// The scale's colours from 0 to the maximum, [r, g, b] in even steps.
const shades = () => {
  const stops = ramp();
  if (!ramps.has(stops)) {
    ramps.set(stops, Array.from({ length: SHADES }, (_, i) => {
      const place = i / (SHADES - 1);
      const above = Math.max(1, stops.findIndex(([stop]) => stop >= place));
      const [[from, low], [to, high]] = [stops[above - 1], stops[above]];
      const part = (place - from) / (to - from);
      const [one, other] = [rgbOf(low), rgbOf(high)];
      return one.map((value, channel) => Math.round(value + (other[channel] - value) * part));
    }));
  }
  return ramps.get(stops);
};
const shadeAt = (value, most) => Math.round(Math.min(Math.max(value / most, 0), 1) * (SHADES - 1));
const shadeOf = (value, most) => shades()[shadeAt(value, most)];

// Black or white, whichever is read better: at least 4.5 to 1 on any colour (WCAG 2.2).
const inkOn = (rgb) => {
  const [r, g, b] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
};

// One of a row is chosen by pointer.
const asPointed = (box, choose) => box.addEventListener("click", (event) => {
  const at = [...box.children].findIndex((child) => child.contains(event.target));
  if (at >= 0) choose(at);
});
// One of a row of buttons is chosen, by pointer or with the arrow keys; Tab goes past the others.
const asKeyed = (box, choose) => {
  const buttons = () => [...box.querySelectorAll("button")];
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const next = buttons().indexOf(document.activeElement) + step;
    if (step === undefined || buttons()[next] === undefined) return;
    event.preventDefault();
    choose(next);
    buttons()[next].focus();
  });
};
const asChoice = (box, choose) => {
  asPointed(box, choose);
  asKeyed(box, choose);
};
const markChoice = (box, chosen) => [...box.children].forEach((child, i) => {
  child.classList.toggle("chosen", i === chosen);
  if (child.tagName !== "BUTTON") return; // the second row of a pair: the first has the keys
  child.setAttribute("aria-checked", String(i === chosen));
  child.tabIndex = i === chosen ? 0 : -1;
});
const choiceOf = (side, text) => {
  if (side === "beside") return element("span", text);
  const button = element("button", text, { type: "button" });
  button.setAttribute("role", "radio");
  return button;
};
