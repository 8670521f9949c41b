// Every path is relative, so that the page works below a prefix that a proxy adds.
SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi.json",
  queryConfigEnabled: false, // a link must not be able to have it show another document
  persistAuthorization: false, // a credential is gone with the page
  validatorUrl: null, // nothing leaves the host
  tryItOutEnabled: true,
  // Of the document's servers, the one that the page is from: the browser lets it talk to no other.
  plugins: [() => ({ statePlugins: { spec: { wrapActions: {
    updateJsonSpec: (update) => (document) => update({ ...document, servers: [{ url: "./" }] }),
  } } } })],
});
