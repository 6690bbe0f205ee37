// -- elements, and calls to the server ------------------------------------------------------------------------------
const $ = (id) => document.getElementById(id);

// The address of the server: this page is its / or its /docs, perhaps below a prefix.
const BASE = new URL(location.pathname.replace(/\/docs$/, "").replace(/\/?$/, "/"), location.origin);

function make(tag, properties = {}, ...children) {
  const { style, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(style ?? {})) made.style.setProperty(name, value);
  made.append(...children);
  return made;
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/**
 * The address of a route. With several models each is asked at its own base URL, which every route has. It is relative:
 * a proxy may pass on only what is below BASE.
 */
function address(path, model = null) {
  return new URL((model === null ? "." : `models/${model}`) + path, BASE).href;
}

/** The value, the milliseconds and the headers of an answer. Throws an Error with the server's message. */
async function ask(url, body) {
  const started = performance.now();
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const reply = await fetch(url, { ...options, headers: headers() });
  const text = await reply.text();
  const milliseconds = performance.now() - started;
  let value = text;
  try { value = JSON.parse(text); } catch { /* an answer without JSON is shown as it is */ }
  if (!reply.ok) {
    const message = value?.error?.message ?? value?.error ?? text;
    throw Object.assign(new Error(`${reply.status}: ${message || reply.statusText}`), { status: reply.status });
  }
  return { value, milliseconds, headers: reply.headers };
}

// -- the same request elsewhere -------------------------------------------------------------------------------------
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const SNIPPETS = {
  curl: (url, body, key) =>
    `curl ${url} -H 'content-type: application/json'${key ? ` -H "authorization: Bearer $KEY"` : ""} \\\n  -d ${quoted(JSON.stringify(body))}`,
  Python: (url, body, key) =>
    `import json, os, urllib.request\n\nbody = json.loads(${JSON.stringify(JSON.stringify(body))})\n` +
    `headers = {"content-type": "application/json"${key ? `, "authorization": "Bearer " + os.environ["KEY"]` : ""}}\n` +
    `request = urllib.request.Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)\n` +
    `print(json.load(urllib.request.urlopen(request)))\n`,
  JavaScript: (url, body, key) =>
    `const reply = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n` +
    `  headers: { "content-type": "application/json"${key ? `, authorization: "Bearer " + process.env.KEY` : ""} },\n` +
    `  body: JSON.stringify(${JSON.stringify(body)}),\n});\nconsole.log(JSON.stringify(await reply.json()));\n`,
};

/** Buttons that copy a request; where the page may not write to the clipboard, the text is shown. */
function copies(url, body) {
  const shown = make("pre", { hidden: true, tabIndex: 0 });
  const buttons = Object.entries(SNIPPETS).map(([name, write]) => {
    const button = make("button", { type: "button", className: "plain", textContent: `copy as ${name}` });
    button.onclick = async () => {
      shown.textContent = write(url, body, $("key").value);
      try {
        await navigator.clipboard.writeText(shown.textContent);
        button.textContent = `copied as ${name}`;
      } catch { shown.hidden = false; }
    };
    return button;
  });
  return make("div", {}, make("div", { className: "row" }, ...buttons), shown);
}
