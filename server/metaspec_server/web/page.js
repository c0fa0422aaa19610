"use strict";
// Draw a cell, send its bits to /predict, plot what the detectors get.

const PIXELS = 128;
const COLOURS = [  // name, band in nm (lower edge in, upper edge out), detectors
  ["blue", [400, 500], ["B"]],
  ["green", [500, 600], ["G1", "G2"]],
  ["red", [600, 700], ["R"]],
];
const SPREAD = "spread";  // not of a detector: how far predictions by way of symmetric images are apart
const MODEL = new URLSearchParams(location.search).get("model") || "diffractionnet";
const $ = (id) => document.getElementById(id);
const cell = new Uint8Array(PIXELS * PIXELS);
let model = null;

function paint() {
  const context = $("cell").getContext("2d");
  const image = context.createImageData(PIXELS, PIXELS);
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--solid").trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let i = 0; i < cell.length; i++) image.data.set([r, g, b, cell[i] ? 255 : 0], 4 * i);
  context.putImageData(image, 0, 0);
}

function draw(row, column) {
  const radius = $("size").value / 2;
  const material = Number(document.querySelector("[name=material]:checked").value);
  for (let y = Math.floor(row - radius); y <= row + radius; y++) {
    for (let x = Math.floor(column - radius); x <= column + radius; x++) {
      if ((y - row) ** 2 + (x - column) ** 2 > radius ** 2) continue;
      const [i, j] = [y, x].map((at) => ((at % PIXELS) + PIXELS) % PIXELS);  // the cell is periodic
      cell[i * PIXELS + j] = material;
      if ($("symmetric").checked) cell[j * PIXELS + i] = material;
    }
  }
}

function randomise() {
  // A sum of long waves, cut at its middle: periodic, and with features that can be made.
  const field = new Float64Array(cell.length);
  for (let wave = 0; wave < 24; wave++) {
    const [u, v] = [0, 0].map(() => Math.round(8 * (Math.random() - 0.5)));
    const [phase, height] = [2 * Math.PI * Math.random(), Math.exp(-(u * u + v * v) / 12)];
    for (let i = 0; i < cell.length; i++) {
      const [row, column] = [Math.floor(i / PIXELS), i % PIXELS];
      field[i] += height * Math.cos((2 * Math.PI * (u * row + v * column)) / PIXELS + phase);
    }
  }
  const middle = Float64Array.from(field).sort()[cell.length / 2];
  for (let i = 0; i < cell.length; i++) {
    const mirrored = (i % PIXELS) * PIXELS + Math.floor(i / PIXELS);
    cell[i] = ($("symmetric").checked ? field[i] + field[mirrored] > 2 * middle : field[i] > middle) ? 1 : 0;
  }
}

function packed() {
  const bits = new Uint8Array(cell.length / 8);
  for (let i = 0; i < cell.length; i++) bits[i >> 3] |= cell[i] << (7 - (i & 7));
  return bits;
}

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...($("key").value && { "X-API-Key": $("key").value }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail || problem.error || `HTTP ${answer.status}`);
}

let asking = false, askAgain = false;
async function update() {
  paint();
  if (asking) { askAgain = true; return; }  // one request at a time; the last drawing wins
  asking = true;
  try {
    if (!model) model = await (await ask(`/v2/models/${encodeURIComponent(MODEL)}`)).json();
    const started = performance.now();
    const headers = { "Content-Type": "application/octet-stream", Accept: "application/octet-stream" };
    const answer = await ask(`/predict?model=${encodeURIComponent(MODEL)}`, { method: "POST", headers, body: packed() });
    const spectra = new Float32Array(await answer.arrayBuffer());
    plot(spectra, model.parameters.wavelengths_nm, model.parameters.channels);
    tell(`${model.name} version ${answer.headers.get("MetaSpec-Version")}, ${Math.round(performance.now() - started)} ms`);
  } catch (error) {
    tell(error.message, true);
  }
  asking = false;
  if (askAgain) { askAgain = false; update(); }
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function plot(spectra, wavelengths, channels) {
  const [left, right, top, bottom] = [48, 622, 12, 360];
  const [first, last] = [wavelengths[0], wavelengths[wavelengths.length - 1]];
  const height = Math.max(0.4, Math.ceil(10 * spectra.reduce((a, b) => Math.max(a, b), 0)) / 10);
  const x = (nm) => left + ((right - left) * (nm - first)) / (last - first);
  const y = (value) => bottom - ((bottom - top) * value) / height;
  const parts = [];
  for (let value = 0; value <= height + 1e-9; value += 0.1) {
    parts.push(element("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    parts.push(element("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
  }
  for (let nm = Math.ceil(first / 50) * 50; nm <= last; nm += 50) {
    parts.push(element("text", { x: x(nm), y: bottom + 18, "text-anchor": "middle" }, nm));
  }
  parts.push(element("text", { x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, "wavelength in nm"));
  channels.forEach((name, channel) => {
    const points = wavelengths.map((nm, w) => `${x(nm).toFixed(1)},${y(spectra[channel * wavelengths.length + w]).toFixed(1)}`);
    const kind = name === SPREAD ? "channel-spread" : `channel-${channel}`;
    parts.push(element("path", { class: kind, d: "M" + points.join("L") }));
    parts.push(element("text", { class: `channel ${kind}`, x: left + 12 + 40 * channel, y: top + 14 }, name));
  });
  $("plot").replaceChildren(...parts);
  const mean = (detectors, inside) => {
    const chosen = [...wavelengths.keys()].filter((w) => inside(wavelengths[w]));
    const rows = detectors.map((name) => channels.indexOf(name));
    const total = chosen.reduce((sum, w) => sum + rows.reduce((s, row) => s + spectra[row * wavelengths.length + w], 0), 0);
    return total / chosen.length;
  };
  COLOURS.forEach(([, [low, high], detectors], n) => {
    const inside = (nm) => nm >= low && nm < high;
    $(`efficiency-${n}`).textContent = mean(detectors, inside).toFixed(3);
    $(`crosstalk-${n}`).textContent = mean(detectors, (nm) => nm >= first && nm < 700 && !inside(nm)).toFixed(3);
  });
  const spread = channels.includes(SPREAD) ? mean([SPREAD], () => true) : null;
  $("spread").textContent = spread === null ? "" : `Predictions by way of symmetric images are ${spread.toFixed(4)} apart.`;
}

function save() {
  const text = `{'descr': '|u1', 'fortran_order': False, 'shape': (${PIXELS}, ${PIXELS}), }`;
  const header = text.padEnd(128 - 10 - 1) + "\n";
  const start = new Uint8Array([0x93, ...[..."NUMPY"].map((c) => c.charCodeAt(0)), 1, 0, header.length, 0]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([start, header, cell]));
  link.download = "structure.npy";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function open(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const size = bytes[8] + 256 * bytes[9];
  const header = new TextDecoder("latin1").decode(bytes.slice(10, 10 + size));
  const pixels = bytes.slice(10 + size);
  if (bytes[0] !== 0x93 || !/'[|<](u1|b1)'/.test(header) || pixels.length !== cell.length || header.includes("True")) {
    tell(`expected a .npy file of ${PIXELS} x ${PIXELS} bytes or booleans, rows first`, true);
    return;
  }
  pixels.forEach((value, i) => { cell[i] = value ? 1 : 0; });
  update();
}

let drawing = false;
const at = (event) => {
  const box = $("cell").getBoundingClientRect();
  return [((event.clientY - box.top) / box.height) * PIXELS, ((event.clientX - box.left) / box.width) * PIXELS];
};
$("cell").addEventListener("pointerdown", (event) => {
  drawing = true;
  $("cell").setPointerCapture(event.pointerId);
  draw(...at(event));
  update();
});
$("cell").addEventListener("pointermove", (event) => { if (drawing) { draw(...at(event)); update(); } });
$("cell").addEventListener("pointerup", () => { drawing = false; });
$("random").addEventListener("click", () => { randomise(); update(); });
$("clear").addEventListener("click", () => { cell.fill(0); update(); });
$("invert").addEventListener("click", () => { cell.forEach((value, i) => { cell[i] = 1 - value; }); update(); });
$("save").addEventListener("click", save);
$("open").addEventListener("change", (event) => { if (event.target.files[0]) open(event.target.files[0]); event.target.value = ""; });
$("key").addEventListener("change", update);
randomise();
update();
