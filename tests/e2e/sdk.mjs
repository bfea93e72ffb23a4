// Uses the official JavaScript client as a customer would: `node sdk.mjs BASE_URL KEY MODEL`. Prints what it saw as JSON
// lines. Each line is one answer: its request id, and the completion tokens it was told of, or null where none were asked
// for. The client is looked up beside the installed packages, in the working directory.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const found = createRequire(`${process.cwd()}/`).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(found));
const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });

function tell(what, requestId, tokens, text) {
  assert.ok(text, `${what}: an empty answer`);
  console.log(JSON.stringify({ what, request_id: requestId, completion_tokens: tokens }));
}

async function streamed(what, create, textOf, body) {
  const { data, response } = await create({ ...body, stream: true }).withResponse();
  let [text, tokens, finish] = ["", null, null];
  for await (const chunk of data) {
    for (const choice of chunk.choices) {
      text += textOf(choice) ?? "";
      finish = choice.finish_reason ?? finish;
    }
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  assert.equal(finish, "length", what);
  tell(what, response.headers.get("x-request-id"), tokens, text);
}

const names = [];
for await (const entry of client.models.list()) names.push(entry.id);
assert.ok(names.includes(model), `${model} is not among ${names}`);

const chat = (body) => client.chat.completions.create(body);
const complete = (body) => client.completions.create(body);
const delta = (choice) => choice.delta.content;
const piece = (choice) => choice.text;
const usage = { stream_options: { include_usage: true } };

for (const max_tokens of [1, 7, 33]) {
  const question = { model, max_tokens, messages: [{ role: "user", content: "What does a weir do?" }] };
  const prompt = { model, max_tokens, prompt: "The river" };

  const answer = await chat(question);
  assert.equal(answer.usage.completion_tokens, max_tokens);
  tell("chat", answer._request_id, answer.usage.completion_tokens, answer.choices[0].message.content);
  const text = await complete(prompt);
  tell("completion", text._request_id, text.usage.completion_tokens, text.choices[0].text);

  await streamed("chat stream", chat, delta, question);
  await streamed("chat stream with usage", chat, delta, { ...question, ...usage });
  await streamed("completion stream", complete, piece, prompt);
  await streamed("completion stream with usage", complete, piece, { ...prompt, ...usage });
}

await assert.rejects(chat({ model: "nobody-serves-this", messages: [] }), (error) => {
  return error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && Boolean(error.requestID);
});
const stranger = new OpenAI({ baseURL, apiKey: "sk-weir-junk", maxRetries: 0 });
await assert.rejects(stranger.models.list(), (error) => {
  return error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key";
});
