// A live page: the address says what is asked and what is chosen, so that a view can be shared.
const QUESTIONS = ["text", "model", "target", "corrupted"];
const NUMBERS = ["layer", "piece"];
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

// An answer that comes after a later question is dropped.
let latest = 0;
const ask = async (wanted) => {
  const asked = question();
  const own = ++latest;
  byId("panels").setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`report?${new URLSearchParams(asked)}`);
    const answer = await response.json();
    if (own !== latest) return;
    if (!response.ok) {
      tell(answer.error);
      return;
    }
    shownQuestion = JSON.stringify(asked);
    await show(answer, { ...wanted, layer: wanted.layer === undefined ? undefined : answer.data.layers.indexOf(wanted.layer) });
  } catch (error) {
    if (own === latest) tell(`The explorer does not answer (${error.message}): is it still running where it was started?`);
  } finally {
    if (own === latest) byId("panels").removeAttribute("aria-busy");
  }
};

const askAddress = () => {
  const given = { ...JSON.parse(byId("report-data").textContent), ...fromAddress() };
  for (const name of QUESTIONS) byId(name).value = given[name] ?? "";
  for (const name of NUMBERS) given[name] = given[name] === undefined ? undefined : Number(given[name]);
  return ask(given);
};

const submit = (event) => {
  event.preventDefault();
  window.history.pushState(null, "", addressOf(question(), {}));
  // The layer and the method stay as they are; the token is the new sentence's own.
  const { piece, ...kept } = state;
  ask(page === null ? {} : { ...kept, layer: page.layers[state.layer] });
};
byId("asked").addEventListener("submit", submit);
byId("model").addEventListener("change", submit);
window.addEventListener("popstate", askAddress);
await askAddress();
