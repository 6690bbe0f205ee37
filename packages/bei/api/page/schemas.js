// -- a route's answer and errors ------------------------------------------------------------------------------------
/** A JSON schema as a reader writes it: names of fields with their types. `within` are the references that led here. */
function shape(schema, schemas, indent = "", within = []) {
  if (schema.$ref !== undefined) {
    const name = schema.$ref.split("/").at(-1);
    return within.includes(name) ? name : shape(schemas[name], schemas, indent, [...within, name]);
  }
  const inside = (of) => shape(of, schemas, indent, within);
  const kinds = schema.anyOf ?? schema.oneOf;
  if (kinds !== undefined) return [...new Set(kinds.map(inside))].join(" | ");
  const values = schema.enum ?? (schema.const === undefined ? undefined : [schema.const]);
  if (values !== undefined) return values.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.prefixItems !== undefined) return `[${schema.prefixItems.map(inside).join(", ")}]`;
  if (schema.type === "array") return `[${inside(schema.items ?? {})}, …]`;
  if (schema.properties !== undefined) {
    const fields = Object.entries(schema.properties).map(([name, of]) =>
      `${indent}  ${name}${schema.required?.includes(name) ? "" : "?"}: ${shape(of, schemas, `${indent}  `, within)}\n`);
    return `{\n${fields.join("")}${indent}}`;
  }
  if (schema.type === "object") return `{ name: ${inside(Object(schema.additionalProperties))}, … }`;
  return [schema.type ?? "any"].flat().join(" | ");
}

/** What a route answers: its shape, and each error with the errors' shape. It is written when it is first opened. */
function answers(operation, schemas) {
  const shown = make("details", {}, make("summary", { textContent: "Answer and errors" }));
  const told = (reply) => make("pre", { tabIndex: 0, textContent: shape(reply.content["application/json"].schema, schemas) });
  shown.addEventListener("toggle", () => {
    const { 200: success, ...errors } = operation.responses;
    const rows = Object.entries(errors).map(([status, { description }]) =>
      make("tr", {}, make("th", { scope: "row", textContent: status }), make("td", { textContent: description })));
    const answer = success.content === undefined ? make("p", { className: "soft", textContent: "No JSON." }) : told(success);
    shown.append(make("h3", { textContent: "Answer" }), answer, make("h3", { textContent: "Errors" }), told(Object.values(errors)[0]), make("table", {}, ...rows));
  }, { once: true });
  return shown;
}
