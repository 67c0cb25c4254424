// npm's `oidc-provider` with the client `agents`, for tests. It prints its port. A token is for the resource that is asked
// for: `urn:weir:ALG` gives one for the audience `weir`, signed with ALG.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const tools = createRequire(process.argv[2] + "/");
const { default: Provider } = await import(pathToFileURL(tools.resolve("oidc-provider")));

const kinds = { RS256: ["rsa", { modulusLength: 2048 }], ES256: ["ec", { namedCurve: "P-256" }], EdDSA: ["ed25519"] };
const keys = Object.entries(kinds).map(([alg, [kind, options]]) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: "jwk" }),
  kid: `key-${alg}`,
  use: "sig",
  // One RSA key serves two algorithms.
  ...(alg === "RS256" ? {} : { alg }),
}));

const resources = {
  "urn:other": { audience: "billing", jwt: { sign: { alg: "RS256" } } },
  "urn:opaque": { audience: "weir", accessTokenFormat: "opaque" },
  "urn:encrypted": {
    audience: "weir",
    jwt: { sign: { alg: "RS256" }, encrypt: { alg: "dir", enc: "A256GCM", key: randomBytes(32) } },
  },
};

const configuration = {
  clients: [{ client_id: "agents", client_secret: "agents-secret", grant_types: ["client_credentials"], redirect_uris: [], response_types: [] }],
  jwks: { keys },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    dPoP: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        scope: "databases",
        accessTokenFormat: "jwt",
        ...(resources[resource] ?? { audience: "weir", jwt: { sign: { alg: resource.split(":").at(-1) } } }),
      }),
    },
  },
  extraTokenClaims: () => ({ groups: ["developers", "oncall"] }),
  ttl: { ClientCredentials: 600 },
};

let answer;
const server = createServer((request, response) => answer(request, response));
server.listen(0, "127.0.0.1", () => {
  const { port } = server.address();
  answer = new Provider(`http://127.0.0.1:${port}`, configuration).callback();
  console.log(port);
});
