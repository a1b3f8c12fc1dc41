// A live page: the address says the question and the choices, so that a view can be shared.
const COMPARED = ["compare", "compare_model"];
const IN_MORE = ["target", "corrupted", "good", "bad"];
const QUESTIONS = ["text", "model", ...IN_MORE, ...COMPARED, "heads"];
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
let answer = { mask: null, offsets: null, good: null, bad: null };
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

// What is measured: the good word, and its foil.
const MEASURED = ["good", "bad"];
const showMeasured = () => {
  const { good, bad } = answer;
  byId("measured").hidden = page.predictions.length === 0;
  byId("measured-words").textContent = good === null ? "" : `Measured: ${[good, bad].filter(Boolean).map(({ name }) => `\u2068${name}\u2069`).join(" − ")}.`;
  byId("without-good").hidden = good === null;
  byId("without-bad").hidden = bad === null;
  if (byId("measured").hidden || predictedAt() !== page.target) return;
  for (const word of byId("predicted").querySelectorAll("button")) {
    for (const name of MEASURED) word.classList.toggle(name, Number(word.value) === answer[name]?.id);
  }
};
const without = async (...names) => {
  for (const name of names) byId(name).value = "";
  await go();
  document.querySelector("#predicted button")?.focus(); // what was pressed is gone
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
  showMeasured();
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
    for (const name of MEASURED.filter((name) => next[name] !== null)) {
      // A word that was chosen by its id is said as a word, where one says it.
      if (byId(name).value === query[name]) byId(name).value = next[name].word;
      query[name] = next[name].word;
    }
    shownQuestion = JSON.stringify(query);
    const { layer, ...others } = wanted();
    await show(answer, { ...others, layer: answer.data.layers.indexOf(layer) });
  } else {
    tell(next.error);
  }
  byId("panels").removeAttribute("aria-busy");
};

// The fields of what stands beside; what is not in the list of models is refused by name.
const openCompare = (isOpen) => {
  byId("comparison").hidden = !isOpen;
  byId("add-compare").hidden = isOpen;
};
const fillCompared = (wanted) => {
  const { options } = byId("compare_model");
  const name = wanted.compare_model;
  if (name !== undefined && ![...options].some(({ value }) => value === name)) options.add(new Option(name));
  openCompare(COMPARED.some((part) => (wanted[part] ?? "").trim() !== ""));
};
const closeCompare = () => {
  for (const name of COMPARED) byId(name).value = "";
  openCompare(false);
};

const askAddress = () => {
  const wanted = { ...JSON.parse(byId("report-data").textContent), ...fromAddress() };
  fillCompared(wanted);
  for (const name of QUESTIONS) fieldOf(name).value = wanted[name] ?? "";
  model = byId("model").value;
  fillExamples();
  byId("more").open = IN_MORE.some((name) => byId(name).value !== "");
  for (const name of NUMBERS) wanted[name] = wanted[name] === undefined ? undefined : Number(wanted[name]);
  return ask(() => wanted);
};

const go = (event) => {
  event?.preventDefault();
  fillExamples();
  // Two models read the same sentence, also when it changes: an empty field says so.
  if (byId("compare_model").value !== "" && byId("compare").value === byId("text").value) byId("compare").value = "";
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
      for (const name of [...IN_MORE, "compare"]) byId(name).value = "";
      openCompare(byId("compare_model").value !== "");
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
  // An id is another token there.
  if (MEASURED.some((name) => /^\s*#\d+\s*$/.test(byId(name).value))) for (const name of MEASURED) byId(name).value = "";
  go(event);
});
byId("compare_model").addEventListener("change", go);
byId("add-compare").addEventListener("click", () => {
  openCompare(true);
  byId("compare").value = byId("text").value;
  byId("compare").focus();
});
byId("remove-compare").addEventListener("click", async () => {
  closeCompare();
  byId("add-compare").focus();
  await go();
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
const moveTarget = (position) => {
  stepped = String(position);
  byId("target").value = stepped;
  for (const name of MEASURED) byId(name).value = ""; // they were chosen for another prediction
};
measureAt = async (position) => {
  moveTarget(position);
  await go();
  document.querySelector("#text-value_zeroing .chosen").focus();
};
measureWord = async (id, isFoil, position) => {
  const likeliest = page.predictions[position].ids[0];
  if (position !== page.target) moveTarget(position);
  if (!isFoil && String(answer.bad?.id) === id) byId("bad").value = "";
  byId(isFoil ? "bad" : "good").value = `#${id}`;
  // The likeliest word is measured where none was chosen.
  if (byId("good").value === "") byId("good").value = `#${likeliest}`;
  await go();
  document.querySelector(`#predicted [value="${id}"]`)?.focus();
};
byId("as-foil").addEventListener("click", ({ target }) => {
  target.ariaPressed = String(target.ariaPressed !== "true");
});
byId("without-bad").addEventListener("click", () => without("bad"));
byId("without-good").addEventListener("click", () => without("good", "bad"));
window.addEventListener("popstate", askAddress);
await askAddress();
arrive();
