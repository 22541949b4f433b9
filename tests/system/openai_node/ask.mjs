// Asks a server everything the official client is tested with, and prints one JSON document of what came.
// node ask.mjs BASE_URL CHAT_MODEL EMBEDDING_MODEL DATA_URL

import OpenAI, { toFile } from "openai";

const [baseURL, model, embeddingModel, dataUrl] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "hi" }];
const parameters = {
  type: "object",
  properties: { animal: { enum: ["cat", "dog"] } },
  required: ["animal"],
  additionalProperties: false,
};

async function stream() {
  const pieces = [];
  let usage;
  const chunks = await client.chat.completions.create({
    model, messages, max_tokens: 5, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of chunks) {
    pieces.push(...chunk.choices.map((choice) => choice.delta.content ?? ""));
    usage = chunk.usage ?? usage;
  }
  return { text: pieces.join(""), usage };
}

function image() {
  const content = [
    { type: "image_url", image_url: { url: dataUrl, detail: "high" } },
    { type: "text", text: "what?" },
  ];
  return client.chat.completions.create({ model, messages: [{ role: "user", content }], max_tokens: 2 });
}

async function tools() {
  const offered = [{ type: "function", function: { name: "count", parameters } }];
  const called = await client.chat.completions.create({
    model, messages, tools: offered, tool_choice: "required", max_tokens: 200,
  });
  const { message } = called.choices[0];
  const told = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "3" };
  const after = await client.chat.completions.create({
    model, messages: [...messages, message, told], tools: offered, max_tokens: 2,
  });
  return { called, after };
}

function schema() {
  return client.chat.completions.create({
    model, messages, max_tokens: 200,
    response_format: { type: "json_schema", json_schema: { name: "animal", schema: parameters, strict: true } },
  });
}

async function embeddings() {
  const made = await client.embeddings.create({ model: embeddingModel, input: ["a dog", "a red car"] });
  return { vectors: made.data.map((one) => one.embedding), usage: made.usage };
}

async function files() {
  const made = await client.files.create({ file: await toFile(Buffer.from("abc"), "a.txt"), purpose: "user_data" });
  const found = await client.files.retrieve(made.id);
  const listed = [];
  for await (const one of client.files.list()) listed.push(one.id);
  const content = await (await client.files.content(made.id)).text();
  const { deleted } = await client.files.delete(made.id);
  return { found, isListed: listed.includes(made.id), content, deleted };
}

async function batches() {
  const url = "/v1/chat/completions";
  const row = (id, more) => JSON.stringify({ custom_id: id, method: "POST", url, body: { messages, max_tokens: 2, ...more } });
  const lines = [row("good", {}), row("bad", { no_such: 1 })].join("\n");
  const upload = await client.files.create({ file: await toFile(Buffer.from(lines), "rows.jsonl"), purpose: "batch" });
  let batch = await client.batches.create({ input_file_id: upload.id, endpoint: url, completion_window: "24h" });
  while (batch.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  const output = await (await client.files.content(batch.output_file_id)).text();
  return { batch, rows: output.trim().split("\n").map((line) => JSON.parse(line)) };
}

async function error() {
  try {
    await client.chat.completions.create({ model: "gpt", messages });
  } catch (reason) {
    return { kind: reason.constructor.name, status: reason.status, code: reason.code, param: reason.param };
  }
}

const chat = await client.chat.completions.create({ model, messages, max_tokens: 5 });
console.log(JSON.stringify({
  chat, stream: await stream(), image: await image(), tools: await tools(), schema: await schema(),
  embeddings: await embeddings(), files: await files(), batches: await batches(), error: await error(),
}));
