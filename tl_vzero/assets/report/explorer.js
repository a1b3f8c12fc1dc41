// A live page: the address says the question and the choices, so that a view can be shared.
const QUESTIONS = ["text", "model", "target", "corrupted", "heads"];
const fieldOf = (name) => byId(name === "heads" ? "heads-asked" : name); // the panel has the other name
const NUMBERS = ["layer", "piece", "threshold", "window", "head"];
// A sentence that fits, and some to try, by model.
const { texts: fitting, examples } = JSON.parse(byId("report-data").textContent);
const fromAddress = () => Object.fromEntries(new URLSearchParams(window.location.search));

const question = () => Object.fromEntries(
  QUESTIONS.map((name) => [name, fieldOf(name).value]).filter(([, value]) => value.trim() !== ""),
);
let shownQuestion = "";
const addressOf = (query, chosen) => `?${new URLSearchParams({ ...query, ...chosen })}`;
// What is wrong with a question is said where it is written.
byId("question").append(byId("status"));
const tell = (text) => {
  byId("status").textContent = text;
  byId("status").hidden = text === "";
};

// "Mask this word": the chosen word is replaced by the model's mask, and the sentence read again.
let answer = { mask: null, offsets: null };
const letters = () => [...JSON.parse(shownQuestion).text]; // as Python counts them
const wordPlace = () => {
  const { offsets, mask } = answer;
  if (!mask || offsets === null || page.wordOf === null) return null;
  const places = offsets.filter(([begin, end], piece) => page.wordOf[piece] === page.wordOf[state.piece] && begin < end);
  if (places.length === 0) return null;
  const text = letters();
  const end = Math.max(...places.map((place) => place[1]));
  let begin = Math.min(...places.map((place) => place[0]));
  while (begin < end && text[begin].trim() === "") begin += 1; // the space before a word may belong to it
  const word = text.slice(begin, end).join("");
  return begin === end || word === mask ? null : { begin, end, word };
};
const offerMask = () => {
  const place = wordPlace();
  byId("mask-word").hidden = place === null;
  byId("mask-word").textContent = place === null ? "" : `Mask this word: \u2068${place.word}\u2069`;
};
const maskWord = async () => {
  const place = wordPlace();
  if (place === null) return;
  const text = letters();
  const masked = [...text.slice(0, place.begin), answer.mask, ...text.slice(place.end)].join("");
  byId("text").value = masked;
  // The only mask is the target by itself; among several it is this one.
  byId("target").value = masked.split(answer.mask).length === 2 ? "" : String(page.wordOf.indexOf(page.wordOf[state.piece]));
  await go();
  byId("text-value_zeroing").querySelector("[tabindex='0']")?.focus();
};

// The maps of heads cost a moment: they are asked for once somebody wants them.
asksHeads = true;
const offerHeads = () => {
  byId("ask-heads").textContent = page.heads === null ? "Show the heads" : "Leave the heads";
};
byId("ask-heads").addEventListener("click", () => {
  byId("heads-asked").value = page.heads === null ? "1" : "";
  window.history.pushState(null, "", addressOf(question(), {}));
  return ask(() => ({ ...state, layer: page.layers[state.layer] }));
});

remember = ({ layer, ...others }) => {
  offerMask();
  offerHeads();
  const chosen = Object.fromEntries(Object.entries({ layer: page.layers[layer], ...others }).filter(([, v]) => v !== null));
  window.history.replaceState(null, "", addressOf(JSON.parse(shownQuestion), chosen));
};

// An answer that comes after a later question is dropped. `wanted` gives the choices to show it with.
let latest = 0;
let asking = new AbortController();
const answered = async (query) => {
  asking.abort(); // so that what nobody waits for is not computed
  asking = new AbortController();
  try {
    const response = await fetch(`report?${new URLSearchParams(query)}`, { signal: asking.signal });
    return await response.json();
  } catch (error) {
    return { error: `The explorer does not answer (${error.message}): is it still running where it was started?` };
  }
};
const ask = async (wanted) => {
  const query = question();
  latest += 1;
  const turn = latest;
  byId("panels").setAttribute("aria-busy", "true");
  const next = await answered(query);
  if (turn !== latest) return;
  if (next.error === undefined) {
    answer = next;
    shownQuestion = JSON.stringify(query);
    const { layer, ...others } = wanted();
    await show(answer, { ...others, layer: answer.data.layers.indexOf(layer) });
  } else {
    tell(next.error);
  }
  byId("panels").removeAttribute("aria-busy");
};

const askAddress = () => {
  const wanted = { ...JSON.parse(byId("report-data").textContent), ...fromAddress() };
  for (const name of QUESTIONS) fieldOf(name).value = wanted[name] ?? "";
  model = byId("model").value;
  fillExamples();
  byId("more").open = ["target", "corrupted"].some((name) => byId(name).value !== "");
  for (const name of NUMBERS) wanted[name] = wanted[name] === undefined ? undefined : Number(wanted[name]);
  return ask(() => wanted);
};

const go = (event) => {
  event?.preventDefault();
  fillExamples();
  window.history.pushState(null, "", addressOf(question(), {}));
  // What is chosen stays as it is; the token is the new sentence's own, and so is the layer unless another was chosen.
  const layer = () => (layerChosen ? page.layers[state.layer] : undefined);
  return ask(() => (page === null ? {} : { ...state, layer: layer(), piece: undefined }));
};
const fillExamples = () => {
  const texts = examples[byId("model").value] ?? [];
  byId("examples").replaceChildren(...(texts.length ? ["Try"] : []), ...texts.map((text) => {
    const button = element("button", text, { type: "button", dir: "auto" });
    button.addEventListener("click", () => {
      for (const name of ["target", "corrupted"]) byId(name).value = "";
      byId("text").value = text;
      go();
    });
    return button;
  }));
};
byId("question").addEventListener("submit", go);
// A sentence that was there before anybody wrote one gives way to the next model's.
let model = "";
byId("model").addEventListener("change", (event) => {
  if (byId("text").value === fitting[model]) byId("text").value = fitting[event.target.value];
  model = event.target.value;
  go(event);
});
byId("mask-word").addEventListener("click", maskWord);
byId("text-value_zeroing").addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "m" && !event.ctrlKey && !event.metaKey && !event.altKey) maskWord();
});
// A target that was stepped to belongs to its sentence; one that was written stays.
let stepped = null;
byId("text").addEventListener("input", () => {
  if (byId("target").value === stepped) byId("target").value = "";
});
measureAt = async (position) => {
  stepped = String(position);
  byId("target").value = stepped;
  await go();
  document.querySelector("#text-value_zeroing .chosen").focus();
};
window.addEventListener("popstate", askAddress);
await askAddress();
arrive();
