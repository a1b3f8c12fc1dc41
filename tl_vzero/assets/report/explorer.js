// A live page: the address says the question and the choices, so that a view can be shared.
const QUESTIONS = ["text", "model", "target", "corrupted"];
const NUMBERS = ["layer", "piece", "threshold"];
const { texts: fitting } = JSON.parse(byId("report-data").textContent); // a sentence that fits, by model
const fromAddress = () => Object.fromEntries(new URLSearchParams(window.location.search));

const question = () => Object.fromEntries(
  QUESTIONS.map((name) => [name, byId(name).value]).filter(([, value]) => value.trim() !== ""),
);
let shownQuestion = "";
const addressOf = (query, chosen) => `?${new URLSearchParams({ ...query, ...chosen })}`;
// What is wrong with a question is said where it is written.
byId("question").append(byId("status"));
const tell = (text) => {
  byId("status").textContent = text;
  byId("status").hidden = text === "";
};

remember = ({ layer, ...others }) => {
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
  const answer = await answered(query);
  if (turn !== latest) return;
  if (answer.error === undefined) {
    shownQuestion = JSON.stringify(query);
    const { layer, ...others } = wanted();
    await show(answer, { ...others, layer: answer.data.layers.indexOf(layer) });
  } else {
    tell(answer.error);
  }
  byId("panels").removeAttribute("aria-busy");
};

const askAddress = () => {
  const wanted = { ...JSON.parse(byId("report-data").textContent), ...fromAddress() };
  for (const name of QUESTIONS) byId(name).value = wanted[name] ?? "";
  model = byId("model").value;
  byId("more").open = ["target", "corrupted"].some((name) => byId(name).value !== "");
  for (const name of NUMBERS) wanted[name] = wanted[name] === undefined ? undefined : Number(wanted[name]);
  return ask(() => wanted);
};

const submit = (event) => {
  event?.preventDefault();
  window.history.pushState(null, "", addressOf(question(), {}));
  // What is chosen stays as it is; the token is the new sentence's own, and so is the layer unless another was chosen.
  const layer = () => (layerChosen ? page.layers[state.layer] : undefined);
  return ask(() => (page === null ? {} : { ...state, layer: layer(), piece: undefined }));
};
byId("question").addEventListener("submit", submit);
// A sentence that was there before anybody wrote one gives way to the next model's.
let model = "";
byId("model").addEventListener("change", (event) => {
  if (byId("text").value === fitting[model]) byId("text").value = fitting[event.target.value];
  model = event.target.value;
  submit(event);
});
// A target that was stepped to belongs to its sentence; one that was written stays.
let stepped = null;
byId("text").addEventListener("input", () => {
  if (byId("target").value === stepped) byId("target").value = "";
});
measureAt = async (position) => {
  stepped = String(position);
  byId("target").value = stepped;
  await submit();
  document.querySelector("#text-value_zeroing .chosen").focus();
};
window.addEventListener("popstate", askAddress);
await askAddress();
