// An application written with one of Livepeer's JavaScript SDKs, to be told what to call: python_application.py in
// JavaScript, where the order's keys are described. Arguments: the folder with node_modules, the package.
"use strict";
const { createRequire } = require("node:module");
const { openAsBlob, readFileSync, createReadStream } = require("node:fs");
const { Readable } = require("node:stream");
const { createInterface } = require("node:readline");
const { join } = require("node:path");

const [folder, name] = process.argv.slice(2);
const installed = createRequire(join(folder, "package.json"));
const { Livepeer } = installed(name);
const { HTTPClient } = installed(`${name}/lib/http.js`);
// The two name the option for the bearer token differently.
const token = name === "livepeer" ? "apiKey" : "httpBearer";
const fieldNames = {
  model_id: "modelId",
  num_inference_steps: "numInferenceSteps",
  safety_check: "safetyCheck",
};
const timeoutMs = 120_000;

async function image(call) {
  if (call.upload === "blob") {
    return new Blob([readFileSync(call.image)]);
  }
  const content =
    call.upload === "stream" ? Readable.toWeb(createReadStream(call.image)) : readFileSync(call.image);
  return { fileName: call.file_name, content };
}

// The SDK checks every field before it sends; its hook for requests is the way past that.
function spoiling(unchecked) {
  const client = new HTTPClient();
  client.addHook("beforeRequest", async (request) => {
    const form = await request.formData();
    for (const [field, value] of Object.entries(unchecked)) {
      form.set(field, value);
    }
    const headers = new Headers(request.headers);
    headers.delete("content-type");
    return new Request(request.url, { method: request.method, headers, body: form, signal: request.signal });
  });
  return client;
}

async function seen(call) {
  const options = { [token]: "any", serverURL: call.server_url, timeoutMs };
  if (Object.keys(call.unchecked).length > 0) {
    options.httpClient = spoiling(call.unchecked);
  }
  if (call.retries !== null) {
    const { initial_interval, max_interval, exponent, max_elapsed_time } = call.retries;
    const backoff = {
      initialInterval: initial_interval,
      maxInterval: max_interval,
      exponent,
      maxElapsedTime: max_elapsed_time,
    };
    options.retryConfig = { strategy: "backoff", backoff, retryConnectionErrors: false };
  }
  const request = { image: await image(call) };
  for (const [field, value] of Object.entries(call.fields)) {
    request[fieldNames[field] ?? field] = value;
  }
  try {
    const response = await new Livepeer(options).generate.upscale(request);
    const [made] = response.imageResponse.images;
    const headers = Object.fromEntries(response.rawResponse.headers);
    return { raised: null, url: made.url, seed: made.seed, nsfw: made.nsfw, headers };
  } catch (error) {
    return failure(error);
  }
}

function failure(error) {
  const facts = { raised: error.name, text: String(error) };
  if (error.statusCode !== undefined) {
    const headers = Object.fromEntries(error.rawResponse.headers);
    return { ...facts, status: error.statusCode, body: error.body, headers };
  }
  if (Array.isArray(error.detail)) {
    return { ...facts, detail: error.detail };
  }
  return { ...facts, msg: error.detail?.msg };
}

async function main() {
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await seen(JSON.parse(line))));
  }
}

main();
