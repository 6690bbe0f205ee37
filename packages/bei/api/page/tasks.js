// -- tasks ----------------------------------------------------------------------------------------------------------
// A task: whether it `fits` a model's /info, its `fields`, `examples` of their values, the `request` that they make, and
// how to `show` its answer.
const TEXT = { rows: 4 };
const TEXTS = { rows: 6, hint: "one a line" };

const entails = (info) => Object.keys(info.model_type.classifier?.label2id ?? {}).some((label) => /entail/i.test(label));
const namesLabels = (info) => Object.keys(info.model_type.classifier?.id2label ?? {}).length === 0;

function nearest(texts, matrix) {
  const pairs = matrix.flatMap((row, i) => row.slice(i + 1).map((value, k) => [value, i, i + 1 + k]));
  return pairs.sort((one, other) => other[0] - one[0]).slice(0, 5).map(([value, i, k]) => [`${texts[i]} — ${texts[k]}`, value]);
}

/** A text with its entities marked. Offsets count characters, not UTF-16 units. */
function marked(text, entities) {
  const characters = Array.from(text);
  const shown = make("p", { className: "marked" });
  let at = 0;
  for (const { start, end, results } of [...entities].sort((one, other) => one.start - other.start)) {
    if (start < at) continue;
    const [label, score] = Object.entries(results)[0];
    shown.append(characters.slice(at, start).join(""));
    shown.append(make("mark", {}, characters.slice(start, end).join(""), make("small", { textContent: `${label} ${score.toFixed(2)}` })));
    at = end;
  }
  shown.append(characters.slice(at).join(""));
  return shown;
}

const TASKS = [
  {
    name: "Embeddings",
    about: "Texts of like meaning have a cosine near 1.",
    fits: (info) => info.abilities.includes("embed"),
    fields: { texts: { label: "Texts", ...TEXTS } },
    examples: {
      "three topics": { texts: "The striker scored twice in the cup final.\nA late goal won the match.\nQuarterly profits rose by 76%.\nThe company's shares fell.\nThe new phone has two cameras.\nA laptop with a faster chip was shown." },
      "two languages": { texts: "Where is the station?\nWo ist der Bahnhof?\nThe soup is too hot.\nDie Suppe ist zu heiß." },
    },
    request: ({ texts }) => ["/v1/embeddings", { input: lines(texts) }],
    show: ({ data }, { texts }) => {
      const names = lines(texts), vectors = data.map((item) => item.embedding), matrix = cosines(vectors);
      const more = names.length < 2 ? [] : [make("h3", { textContent: "Map" }), scatter(names, principal(vectors)), bars("nearest pairs", nearest(names, matrix))];
      const first = vectors[0].slice(0, 8).map(rounded).join(", ");
      return [heatMap(names, matrix), ...more, make("p", { className: "soft", textContent: `${vectors[0].length} dimensions; the first vector begins ${first}` })];
    },
  },
  {
    name: "Rerank",
    about: "Documents by how well they answer the query.",
    fits: (info) => info.abilities.includes("rerank"),
    fields: { query: { label: "Query" }, texts: { label: "Documents", ...TEXTS } },
    examples: {
      "a news archive": { query: "Who won the cup?", texts: "The striker scored twice and lifted the cup.\nQuarterly profits rose by 76%.\nThe cup final is on Saturday.\nA new phone was shown." },
    },
    request: ({ query, texts }) => ["/rerank", { query, texts: lines(texts) }],
    show: (ranks, { texts }) => {
      const names = lines(texts);
      return [bars("score of each document, best first", [...ranks].sort((one, other) => other.score - one.score).map(({ index, score }) => [names[index], score]))];
    },
  },
  {
    name: "Classify",
    about: "The score of each label.",
    fits: (info) => info.task === "classifier",
    fields: { text: { label: "Text", ...TEXT } },
    examples: {
      business: { text: "Quarterly profits at the media company rose by 76% to $1.13bn." },
      sports: { text: "The striker scored twice in the second half of the cup final." },
    },
    request: ({ text }) => ["/predict", { inputs: [[text]] }],
    show: ([labels]) => [bars("score of each label", labels.slice(0, 20).map(({ label, score }) => [label, score]))],
  },
  {
    name: "Zero-shot",
    about: "Labels of your own, by how far the text entails them.",
    fits: (info) => info.task === "classifier" && entails(info),
    fields: { text: { label: "Text", ...TEXT }, labels: { label: "Labels", ...TEXTS, rows: 4 } },
    examples: { "a complaint": { text: "I have waited for my parcel for three weeks.", labels: "delivery\nbilling\npraise" } },
    request: ({ text, labels }) => ["/predict", { inputs: text, candidate_labels: lines(labels) }],
    show: (labels) => [bars("score of each label", labels.flat().map(({ label, score }) => [label, score]))],
  },
  {
    name: "Entities",
    about: "Spans of the text with their labels and scores.",
    fits: (info) => info.abilities.includes("entities"),
    fields: { text: { label: "Text", ...TEXT }, labels: { label: "Labels", ...TEXTS, rows: 3, only: namesLabels } },
    examples: {
      "a letter": { text: "My name is Maria Schmidt and I live in Springfield. Call me at 415-555-0134.", labels: "person\ncity\nphone number" },
    },
    request: ({ text, labels }) => ["/predict_tokens", { inputs: [[text]], ...(labels === undefined ? { aggregation_strategy: "simple" } : { labels: lines(labels) }) }],
    show: ([entities], { text }) => [
      marked(text, entities),
      bars("entities", entities.map(({ token, results }) => [`${token} (${Object.keys(results)[0]})`, Object.values(results)[0]])),
    ],
  },
  {
    name: "Sparse",
    about: "Words by their weight; a search index takes them as they are.",
    fits: (info) => info.abilities.includes("embed_sparse"),
    fields: { text: { label: "Text", ...TEXT } },
    examples: { "a question": { text: "Where can I repair the screen of my phone?" } },
    request: ({ text }) => ["/embed_sparse", { inputs: [text] }],
    show: async ([values], _, { model }) => {
      const best = [...values].sort((one, other) => other.value - one.value).slice(0, 30);
      const words = best.length ? (await ask(address("/decode", model), { ids: best.map(({ index }) => [index]), skip_special_tokens: false })).value : [];
      return [bars(`the ${best.length} largest of ${values.length} weights`, best.map(({ value }, i) => [words[i], value]))];
    },
  },
  {
    name: "Tokens",
    about: "A text as the model reads it.",
    fits: () => true,
    fields: { text: { label: "Text", ...TEXT } },
    examples: { "words in pieces": { text: "Embeddings tokenize unfathomably rare words into pieces." } },
    request: ({ text }) => ["/tokenize", { inputs: [text] }],
    show: ([tokens], _, { info }) => {
      const most = info.max_input_length, special = tokens.filter((token) => token.special).length;
      let read = 0;
      const shown = tokens.map((token) => {
        const cut = !token.special && ++read > most - special;
        return make("span", { className: `token${token.special ? " special" : ""}${cut ? " cut" : ""}`, textContent: token.text, title: `id ${token.id}` });
      });
      const told = `${tokens.length} tokens, ${special} of them special. The model reads at most ${most}` + (tokens.length > most ? "; struck-out tokens are cut." : ".");
      return [make("p", {}, ...shown), make("p", { className: "soft", textContent: told })];
    },
  },
];

/** The section of a task for a model. `context` has the `model`'s name or null, and its `info`. */
function section(task, context) {
  const fields = Object.entries(task.fields).filter(([, { only }]) => only === undefined || only(context.info));
  const inputs = Object.fromEntries(fields.map(([name, { rows }]) =>
    [name, rows ? make("textarea", { rows, spellcheck: false }) : make("input", { className: "wide" })]));
  const labels = fields.map(([name, { label, hint }]) =>
    make("label", {}, hint ? `${label}, ${hint}` : label, inputs[name]));
  const output = make("div", { ariaLive: "polite" });
  const run = make("button", { className: "run", textContent: "Run" });
  const form = make("form", { ariaLabel: task.name }, ...labels);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const values = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
    await answer(task, values, context, output);
  };
  const examples = Object.entries(task.examples).map(([name, values]) => {
    const button = make("button", { type: "button", className: "plain", textContent: name });
    button.onclick = () => {
      for (const [field, input] of Object.entries(inputs)) input.value = values[field];
      form.requestSubmit();
    };
    return button;
  });
  form.append(make("div", { className: "row" }, run, make("span", { className: "soft", textContent: "Examples:" }), ...examples));
  return make("section", {}, make("h2", { textContent: task.name }), make("p", { className: "soft", textContent: task.about }), form, output);
}

/** Asks, and shows the answer with its time, its tokens and the request elsewhere. */
async function answer(task, values, context, output) {
  const [path, body] = task.request(values);
  const url = address(path, context.model);
  output.replaceChildren(make("p", { className: "soft", textContent: "…" }));
  try {
    const { value, milliseconds, headers } = await ask(url, body);
    const shown = await task.show(value, values, context);
    const tokens = headers.get("x-compute-tokens"), inside = headers.get("x-inference-time");
    const cut = headers.get("x-truncated-texts");
    const facts = [`${milliseconds.toFixed(1)} ms`, inside && `${inside} ms of it in the engine`, tokens && `${tokens} tokens`, cut && `${cut} cut at the model's limit`];
    output.replaceChildren(...shown, make("p", { className: "soft", textContent: facts.filter(Boolean).join(", ") }), copies(url, body));
  } catch (error) {
    output.replaceChildren(make("p", { className: "error", role: "alert", textContent: error.message }));
  }
}
