// Requests to the server. Addresses are relative to the page: behind the prefix of a proxy they hold, too.

import { $ } from "./dom.js";

const RAW = "application/octet-stream", NPY = "application/x-npy";
const OF_PROXIES = [502, 503, 504];  // what a proxy answers for a server that is away

// The server does not answer, or a proxy answers for it.
export class Away extends Error {
  constructor() { super("The server does not answer."); }
}

export async function send(path, { headers = {}, ...options } = {}) {
  const key = $("key").value;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers, ...(key && { "X-API-Key": key }) } });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Away();
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  if (!problem && OF_PROXIES.includes(answer.status)) throw new Away();
  throw new Error(problem?.detail || problem?.error || `HTTP ${answer.status}`);
}

export const json = async (path, options) => (await send(path, options)).json();

const post = (path, body, type, signal) =>
  send(path, { method: "POST", headers: { "Content-Type": type, Accept: RAW }, body, signal });

// Spectra of structures, one after the other: floats of (structures, channels, wavelengths), and the version that answered.
// The query names the model and its conditions; the body is packed bits, or a .npy file of densities.
export async function predict(query, body, { npy = false, signal } = {}) {
  const answer = await post(`predict?${query}`, body, npy ? NPY : RAW, signal);
  return { values: new Float32Array(await answer.arrayBuffer()), version: answer.headers.get("MetaSpec-Version") };
}

// The gradient of sum(cotangent * spectra) with respect to the pixels: floats of (structures, rows, columns).
// The body is packed bits and then float32 cotangents, or both as .npy files, one after the other. `size` is the number of pixels
// of all structures: gradients with respect to conditions follow.
export async function gradient(query, body, spectraSize, size, { npy = false, signal } = {}) {
  const answer = await post(`gradient?${query}`, body, npy ? NPY : RAW, signal);
  return new Float32Array(await answer.arrayBuffer()).subarray(spectraSize, spectraSize + size);
}

// Names of the models that give spectra, and of those of them that are loaded.
export async function models(suffix) {
  const index = await json("v2/repository/index", { method: "POST" });
  const names = (states) => [...new Set(index.filter(({ name, state }) => states.includes(state) && !name.endsWith(suffix)).map(({ name }) => name))];
  return { known: names(["READY", "LOADING"]), loaded: names(["READY"]) };
}

// Name and metadata of a model. A server that loads models on their first request is sent one, of a structure in bits.
export async function describe(model, bits = null) {
  const path = `v2/models/${encodeURIComponent(model)}`;
  try {
    return await json(path);
  } catch (error) {
    if (error instanceof Away || !bits) throw error;
    await predict(new URLSearchParams({ model }).toString(), bits);
    return json(path);
  }
}

// Resolves when the server is ready again.
export async function comesBack() {
  for (let wait = 0.5; ; wait = Math.min(2 * wait, 4)) {
    await new Promise((resolve) => setTimeout(resolve, 1e3 * wait));
    const answer = await fetch("v2/health/ready", { cache: "no-store" }).catch(() => null);
    if (answer?.ok) return;
  }
}
