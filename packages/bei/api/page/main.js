// -- the page -------------------------------------------------------------------------------------------------------
const RETRY = 1000; // milliseconds, while a model loads

function say(text) {
  $("state").textContent = text;
  $("state").hidden = text === "";
}

async function showModel(name, several) {
  const { value: info } = await ask(address(`/info${several ? `?model=${encodeURIComponent(name)}` : ""}`));
  const facts = [info.served_model_name, info.engine && `on ${info.engine}`, info.model_dtype, info.device];
  $("about").textContent = facts.filter(Boolean).join(", ");
  const context = { model: several ? name : null, info };
  $("tasks").replaceChildren(...TASKS.filter((task) => task.fits(info)).map((task) => section(task, context)));
  return info;
}

async function showRoutes(info) {
  const { value: document_ } = await ask(address("/openapi.json"));
  $("routes").replaceChildren(...routeList(document_, info));
}

async function start() {
  try {
    const { value } = await ask(address("/v1/models"));
    const names = value.data.map((model) => model.id), several = names.length > 1;
    $("model").replaceChildren(...names.map((name) => make("option", { textContent: name, value: name })));
    $("models").hidden = !several;
    $("model").onchange = async () => showRoutes(await showModel($("model").value, several));
    const info = await showModel(names[0], several);
    await showRoutes(info);
    say(info.state === "ready" ? "" : `The model is ${info.state}.`);
    if (info.state === "loading") setTimeout(start, RETRY);
  } catch (error) {
    if (error.status === 503) {
      say("The model is loading …");
      setTimeout(start, RETRY);
    } else {
      say(error.status === 401 ? "The server wants an API key; enter it above." : error.message);
    }
  }
}

$("openapi").href = address("/openapi.json");
$("key").onchange = start;
$("access").onsubmit = (event) => event.preventDefault();
start();
