// A live page: the address says what is asked and what is chosen, so that a view can be shared.
const QUESTIONS = ["text", "model", "target", "corrupted"];
const NUMBERS = ["layer", "piece", "threshold"];
const fromAddress = () => Object.fromEntries(new URLSearchParams(window.location.search));

const question = () => Object.fromEntries(
  QUESTIONS.map((name) => [name, byId(name).value]).filter(([, value]) => value.trim() !== ""),
);
let shownQuestion = "";
const addressOf = (asked, chosen) => `?${new URLSearchParams({ ...asked, ...chosen })}`;
// What is wrong with a question is told where it is asked.
byId("asked").append(byId("status"));
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
const answered = async (asked) => {
  asking.abort(); // so that what nobody waits for is not computed
  asking = new AbortController();
  try {
    const response = await fetch(`report?${new URLSearchParams(asked)}`, { signal: asking.signal });
    return await response.json();
  } catch (error) {
    return { error: `The explorer does not answer (${error.message}): is it still running where it was started?` };
  }
};
const ask = async (wanted) => {
  const asked = question();
  latest += 1;
  const own = latest;
  byId("panels").setAttribute("aria-busy", "true");
  const answer = await answered(asked);
  if (own !== latest) return;
  if (answer.error === undefined) {
    shownQuestion = JSON.stringify(asked);
    const { layer, ...others } = wanted();
    await show(answer, { ...others, layer: answer.data.layers.indexOf(layer) });
  } else {
    tell(answer.error);
  }
  byId("panels").removeAttribute("aria-busy");
};

const askAddress = () => {
  const given = { ...JSON.parse(byId("report-data").textContent), ...fromAddress() };
  for (const name of QUESTIONS) byId(name).value = given[name] ?? "";
  byId("more").open = ["target", "corrupted"].some((name) => byId(name).value !== "");
  for (const name of NUMBERS) given[name] = given[name] === undefined ? undefined : Number(given[name]);
  return ask(() => given);
};

const submit = (event) => {
  event.preventDefault();
  window.history.pushState(null, "", addressOf(question(), {}));
  // What is chosen stays as it is; the token is the new sentence's own.
  ask(() => (page === null ? {} : { ...state, layer: page.layers[state.layer], piece: undefined }));
};
byId("asked").addEventListener("submit", submit);
byId("model").addEventListener("change", submit);
window.addEventListener("popstate", askAddress);
await askAddress();
