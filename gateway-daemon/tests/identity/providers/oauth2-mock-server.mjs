// npm's `oauth2-mock-server`, for tests. It prints its port. The parameter `change` of a token request is a JSON object:
// what it names in `header` and `payload` takes the place of what the server would put there; null takes it out.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const tools = createRequire(process.argv[2] + "/");
const { OAuth2Server } = await import(pathToFileURL(tools.resolve("oauth2-mock-server")));

const server = new OAuth2Server();
await server.issuer.keys.generate("RS256");
await server.start(0, "127.0.0.1");
const { port } = server.address();
server.issuer.url = `http://127.0.0.1:${port}`;

const put = (into, changes) => {
  for (const [name, value] of Object.entries(changes ?? {})) {
    if (value === null) delete into[name];
    else into[name] = value;
  }
};

server.service.on("beforeTokenSigning", (token, request) => {
  Object.assign(token.payload, { sub: "agent-7", aud: "weir", groups: ["developers"] });
  const change = JSON.parse(request.body.change ?? "{}");
  put(token.header, change.header);
  put(token.payload, change.payload);
});
console.log(port);
