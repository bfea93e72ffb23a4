// Meets every refusal as a customer's program would: `node errors.mjs BASE_URL < CASES`. Prints what it saw as JSON lines, as
// errors.py does. The client is looked up beside the installed packages, in the working directory.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.cwd()}/`).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(found));
const [baseURL] = process.argv.slice(2);

async function ask({ name, key, path, body, headers = {} }) {
  let asked = 0;
  const counted = (...request) => {
    asked += 1;
    return fetch(...request);
  };
  const client = new OpenAI({ baseURL, apiKey: key, timeout: 60_000, fetch: counted });
  const began = performance.now();
  let error = null;
  try {
    if (body === null) await client.get(path, { headers });
    else if (body.stream) for await (const _ of await client.chat.completions.create(body, { headers }));
    else await client.post(path, { body, headers });
  } catch (caught) {
    if (!(caught instanceof OpenAI.APIError)) throw caught;
    error = caught;
  }
  const seconds = (performance.now() - began) / 1_000;
  const { status, code, type, message, requestID } = error ?? {};
  return { name, class: error?.constructor.name ?? null, status: status ?? null, code, type, message, request_id: requestID, asked, seconds };
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await ask(JSON.parse(line))));
}
