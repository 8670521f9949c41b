// Every path is relative, so that the page works below a prefix that a proxy adds.
const verbs = ["post", "get", "put", "patch", "delete"];

// byStatus returns a table of an operation's error responses: status, meaning and reasons.
function byStatus(errors) {
  const rows = errors.map(([status, response]) => {
    const [meaning] = response.description.split("\n\n");
    const reasons = Object.keys(response.content["application/json"].examples);
    return `| ${status} | ${meaning} | ${reasons.map((reason) => `\`${reason}\``).join(" ")} |`;
  });
  return ["Any error. Branch on the reason.\n", "| status | meaning | reasons |", "|---|---|---|", ...rows].join("\n");
}

// foldErrors shows the errors of an operation as one response. Each has the same schema, and there
// are so many that the page would be 15 screens long.
function foldErrors(operation) {
  if (!operation.responses) return operation; // the parameters of the path
  const isError = ([status]) => status >= "400";
  const all = Object.entries(operation.responses);
  const errors = all.filter(isError);
  if (errors.length === 0) return operation;
  const [, { content }] = errors[0];
  const [example] = Object.values(content["application/json"].examples);
  const folded = {
    description: byStatus(errors),
    content: { "application/json": { schema: content["application/json"].schema, examples: { example } } },
  };
  return { ...operation, responses: { ...Object.fromEntries(all.filter((r) => !isError(r))), default: folded } };
}

function mapValues(object, change) {
  return Object.fromEntries(Object.entries(object).map(([name, value]) => [name, change(value)]));
}

SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi.json",
  queryConfigEnabled: false, // a link must not make the page show another document
  persistAuthorization: false, // the credential is gone with the page
  validatorUrl: null, // nothing leaves the host
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  operationsSorter: (a, b) => verbs.indexOf(a.get("method")) - verbs.indexOf(b.get("method")),
  plugins: [() => ({ statePlugins: { spec: { wrapActions: {
    updateJsonSpec: (update) => (document) => update({
      ...document,
      servers: [{ url: "./" }], // the browser lets the page call no other
      paths: mapValues(document.paths, (path) => mapValues(path, foldErrors)),
    }),
  } } } })],
});
