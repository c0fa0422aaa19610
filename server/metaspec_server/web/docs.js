"use strict";
// Swagger UI for the OpenAPI document of the server. All addresses are relative to this page: behind the prefix of a proxy,
// requests from the page go there, too.

async function start() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: HTTP ${answer.status}`);
  const spec = await answer.json();
  if (!spec.servers) spec.servers = [{ url: new URL(".", location.href).pathname.slice(0, -1) || "/" }];
  SwaggerUIBundle({ spec, dom_id: "#docs", deepLinking: true });
}

start().catch((error) => { document.getElementById("docs").textContent = error.message; });
