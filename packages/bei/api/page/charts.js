// -- charts ---------------------------------------------------------------------------------------------------------
const rounded = (number) => number.toFixed(3);

/** Rows of [name, value], the largest bar as wide as the column. */
function bars(caption, rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-9);
  const body = rows.map(([name, value]) => {
    const bar = make("div", { className: "bar", style: { "--share": Math.abs(value) / most } });
    return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", {}, bar), make("td", { textContent: rounded(value) }));
  });
  return make("table", { className: "bars" }, make("caption", { className: "soft", textContent: caption }), make("tbody", {}, ...body));
}

const dot = (one, other) => one.reduce((sum, value, i) => sum + value * other[i], 0);

function cosines(vectors) {
  const lengths = vectors.map((vector) => Math.sqrt(dot(vector, vector)) || 1);
  return vectors.map((one, i) => vectors.map((other, k) => dot(one, other) / (lengths[i] * lengths[k])));
}

function heatMap(names, matrix) {
  const number = (i) => `${i + 1}`;
  const head = make("tr", {}, make("td"), ...names.map((name, i) => make("th", { scope: "col", textContent: number(i), title: name })));
  const body = matrix.map((row, i) =>
    make("tr", {}, make("th", { scope: "row", textContent: `${number(i)}. ${names[i]}`, title: names[i] }),
      ...row.map((value) => make("td", { textContent: value.toFixed(2), style: { "--share": Math.max(0, value) } }))));
  const table = make("table", { className: "heat" }, make("caption", { className: "soft", textContent: "cosine of each pair" }), make("thead", {}, head), make("tbody", {}, ...body));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "cosines" }, table);
}

/** The first two principal components, [x, y] a vector. They are eigenvectors of the centered Gram matrix, by power
 * iteration: there are far fewer texts than dimensions. */
function principal(vectors) {
  const mean = vectors[0].map((_, k) => vectors.reduce((sum, vector) => sum + vector[k], 0) / vectors.length);
  const centered = vectors.map((vector) => vector.map((value, k) => value - mean[k]));
  const gram = centered.map((one) => centered.map((other) => dot(one, other)));
  const components = [0, 1].map((which) => {
    let found = gram.map((_, i) => Math.cos(1 + i * (which + 1)));
    let size = 0;
    for (let step = 0; step < 200; step++) {
      found = gram.map((row) => dot(row, found));
      size = Math.sqrt(dot(found, found));
      if (size < 1e-9) return gram.map(() => 0);
      found = found.map((value) => value / size);
    }
    gram.forEach((row, i) => row.forEach((_, k) => { row[k] -= size * found[i] * found[k]; }));
    return found.map((value) => value * Math.sqrt(size));
  });
  return vectors.map((_, i) => [components[0][i], components[1][i]]);
}

/** A map of points [x, y], each with its number and name; both axes have one scale. */
function scatter(names, points) {
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const most = Math.max(...points.flat().map(Math.abs), 1e-9);
  const place = ([x, y]) => [300 + (x / most) * 260, 200 - (y / most) * 170];
  const marks = points.flatMap((point, i) => {
    const [x, y] = place(point);
    const title = svg("title", {}, names[i]);
    const text = svg("text", { x: x > 420 ? x - 9 : x + 9, y: y + 4, "text-anchor": x > 420 ? "end" : "start" }, `${i + 1}. ${names[i].slice(0, 28)}`);
    return [svg("circle", { cx: x, cy: y, r: 5 }, title), text];
  });
  return svg("svg", { viewBox: "0 0 600 400", role: "img", "aria-label": "map of the texts by their first two principal components" }, ...marks);
}
