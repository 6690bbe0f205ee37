// -- every route ----------------------------------------------------------------------------------------------------
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1));

function route(path, method, operation, schemas) {
  const example = operation.requestBody?.content["application/json"]?.example;
  const body = make("textarea", { rows: 6, value: JSON.stringify(example, null, 2), ariaLabel: `body for ${path}`, spellcheck: false });
  const output = make("div", { ariaLive: "polite" });
  const send = make("button", { type: "button", className: "run", textContent: "Send" });
  send.onclick = async () => {
    const told = make("pre", { tabIndex: 0, textContent: "…" });
    output.replaceChildren(told);
    try {
      const sent = example === undefined ? undefined : JSON.parse(body.value);
      if (method === "GET" || sent !== undefined) {
        const { value, milliseconds } = await ask(address(path), sent);
        told.textContent = `in ${milliseconds.toFixed(1)} ms\n${pretty(value)}`;
      }
      if (sent !== undefined) output.append(copies(address(path), sent));
    } catch (error) { told.textContent = error.message; }
  };
  const title = make("summary", {}, make("span", { className: "method", textContent: method }), make("code", { textContent: path }), operation.summary);
  const tries = path.includes("{") || (method === "POST" && example === undefined)
    ? [make("p", { className: "soft", textContent: "See the documentation of the API." })]
    : [...(example === undefined ? [] : [body]), make("div", { className: "row" }, send), output];
  return make("details", {}, title, ...tries, answers(operation, schemas));
}

/** The routes that fit the model, then the others, folded. A route without an ability fits every model. */
function routeList({ paths, components }, info) {
  const shown = (each) => route(...each, components.schemas);
  const all = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => [path, method.toUpperCase(), operation]));
  const fits = ([, , operation]) => operation["x-ability"] === undefined || info === null || info.abilities.includes(operation["x-ability"]);
  const own = ([, , operation]) => (operation["x-ability"] === undefined ? 1 : 0);
  const fitting = all.filter(fits).sort((one, other) => own(one) - own(other));
  const others = all.filter((each) => !fits(each));
  const rest = make("details", {}, make("summary", { textContent: `${others.length} routes for other models` }), ...others.map(shown));
  return [...fitting.map(shown), ...(others.length ? [rest] : [])];
}
