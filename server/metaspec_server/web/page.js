"use strict";
// Draw a structure, send its bits to /predict, and plot the spectra of the detectors.

const $ = (id) => document.getElementById(id);
let contract = null;  // facts that the server states at /contract: detectors, bands of the colours, size of a structure
let pixels = 0;  // along each side of a structure of the model
let structure = null;  // a byte for each pixel, rows first
let model = null;  // name, tensors and metadata

function paint() {
  const context = $("structure").getContext("2d");
  const image = context.createImageData(pixels, pixels);
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--solid").trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  for (let i = 0; i < structure.length; i++) image.data.set([r, g, b, structure[i] ? 255 : 0], 4 * i);
  context.putImageData(image, 0, 0);
}

function draw(row, column) {
  const radius = $("size").value / 2;
  const material = Number(document.querySelector("[name=material]:checked").value);
  for (let y = Math.floor(row - radius); y <= row + radius; y++) {
    for (let x = Math.floor(column - radius); x <= column + radius; x++) {
      if ((y - row) ** 2 + (x - column) ** 2 > radius ** 2) continue;
      const [i, j] = [y, x].map((at) => ((at % pixels) + pixels) % pixels);  // periodic
      structure[i * pixels + j] = material;
      if ($("symmetric").checked) structure[j * pixels + i] = material;
    }
  }
}

function randomise() {
  // A sum of long waves, cut at its median: periodic, and without features too small to fabricate.
  const field = new Float64Array(structure.length);
  for (let wave = 0; wave < 24; wave++) {
    const [u, v] = [0, 0].map(() => Math.round(8 * (Math.random() - 0.5)));
    const [phase, height] = [2 * Math.PI * Math.random(), Math.exp(-(u * u + v * v) / 12)];
    for (let i = 0; i < structure.length; i++) {
      const [row, column] = [Math.floor(i / pixels), i % pixels];
      field[i] += height * Math.cos((2 * Math.PI * (u * row + v * column)) / pixels + phase);
    }
  }
  const middle = Float64Array.from(field).sort()[structure.length / 2];
  for (let i = 0; i < structure.length; i++) {
    const mirrored = (i % pixels) * pixels + Math.floor(i / pixels);
    structure[i] = ($("symmetric").checked ? field[i] + field[mirrored] > 2 * middle : field[i] > middle) ? 1 : 0;
  }
}

function packed() {
  const bits = new Uint8Array(structure.length / 8);
  for (let i = 0; i < structure.length; i++) bits[i >> 3] |= structure[i] << (7 - (i & 7));
  return bits;
}

function report(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...($("key").value && { "X-API-Key": $("key").value }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail || problem.error || `HTTP ${answer.status}`);
}

let sending = false, sendAgain = false;
async function update() {
  paint();
  if (sending) { sendAgain = true; return; }  // one request at a time; the latest drawing wins
  sending = true;
  try {
    const name = encodeURIComponent(new URLSearchParams(location.search).get("model") || contract.default_model);
    if (!model) {
      model = await (await send(`v2/models/${name}`)).json();
      if (model.parameters.process.pixels !== pixels) { resize(model.parameters.process.pixels); paint(); }
    }
    const started = performance.now();
    const headers = { "Content-Type": "application/octet-stream", Accept: "application/octet-stream" };
    const answer = await send(`predict?model=${name}`, { method: "POST", headers, body: packed() });
    const spectra = new Float32Array(await answer.arrayBuffer());
    plot(spectra, model.parameters.wavelengths_nm, model.parameters.channels);
    const greens = model.parameters.merged_greens ? `; ${contract.colours.G.detectors.join(" and ")}: only their mean is known` : "";
    report(`${model.name} version ${answer.headers.get("MetaSpec-Version")}, ${Math.round(performance.now() - started)} ms${greens}`);
  } catch (error) {
    report(error.message, true);
  }
  sending = false;
  if (sendAgain) { sendAgain = false; update(); }
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
    const kind = `channel-${name}`;
    parts.push(element("path", { class: kind, d: "M" + points.join("L") }));
    parts.push(element("text", { class: `channel ${kind}`, x: left + 12 + 40 * channel, y: top + 14 }, name));
  });
  $("plot").replaceChildren(...parts);
  const mean = (detectors, inside) => {
    const selected = [...wavelengths.keys()].filter((w) => inside(wavelengths[w]));
    const rows = detectors.map((name) => channels.indexOf(name));
    const total = selected.reduce((sum, w) => sum + rows.reduce((s, row) => s + spectra[row * wavelengths.length + w], 0), 0);
    return total / selected.length;
  };
  const text = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");  // not finite: no wavelength in the band
  const within = ({ band_nm: [low, high] }, nm) => nm >= low && nm < high;
  for (const [colour, facts] of Object.entries(contract.colours)) {
    const others = Object.values(contract.colours).filter((other) => other !== facts);
    $(`efficiency-${colour}`).textContent = text(mean(facts.detectors, (nm) => within(facts, nm)));
    $(`crosstalk-${colour}`).textContent = text(mean(facts.detectors, (nm) => others.some((other) => within(other, nm))));
  }
  const spread = channels.includes(contract.spread) ? mean([contract.spread], () => true) : null;
  $("spread").textContent = spread === null ? "" : `The predictions for symmetric images deviate by ${spread.toFixed(4)}.`;
}

function save() {
  const text = `{'descr': '|u1', 'fortran_order': False, 'shape': (${pixels}, ${pixels}), }`;
  const header = text.padEnd(128 - 10 - 1) + "\n";
  const start = new Uint8Array([0x93, ...[..."NUMPY"].map((c) => c.charCodeAt(0)), 1, 0, header.length, 0]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([start, header, structure]));
  link.download = "structure.npy";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function open(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const size = bytes[8] + 256 * bytes[9];
  const header = new TextDecoder("latin1").decode(bytes.slice(10, 10 + size));
  const values = bytes.slice(10 + size);
  if (bytes[0] !== 0x93 || !/'[|<](u1|b1)'/.test(header) || values.length !== structure.length || header.includes("True")) {
    report(`expected a .npy file of ${pixels} x ${pixels} bytes or booleans, rows first`, true);
    return;
  }
  values.forEach((value, i) => { structure[i] = value ? 1 : 0; });
  update();
}

function resize(side) {
  pixels = side;
  structure = new Uint8Array(pixels ** 2);
  $("structure").width = $("structure").height = pixels;
  randomise();
}

let drawing = false;
function at(event) {
  const box = $("structure").getBoundingClientRect();
  return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((share) => share * pixels);
}

function listen() {
  $("structure").addEventListener("pointerdown", (event) => {
    drawing = true;
    $("structure").setPointerCapture(event.pointerId);
    draw(...at(event));
    update();
  });
  $("structure").addEventListener("pointermove", (event) => { if (drawing) { draw(...at(event)); update(); } });
  $("structure").addEventListener("pointerup", () => { drawing = false; });
  $("random").addEventListener("click", () => { randomise(); update(); });
  $("clear").addEventListener("click", () => { structure.fill(0); update(); });
  $("invert").addEventListener("click", () => { structure.forEach((value, i) => { structure[i] = 1 - value; }); update(); });
  $("save").addEventListener("click", save);
  $("open").addEventListener("change", (event) => { if (event.target.files[0]) open(event.target.files[0]); event.target.value = ""; });
  $("key").addEventListener("change", update);
}

function build() {
  for (const [detector, [row, column]] of Object.entries(contract.quadrants)) {
    const label = document.createElement("span");
    label.textContent = detector;
    label.style.gridArea = `${row + 1} / ${column + 1}`;
    $("detectors").append(label);
  }
  for (const [colour, { name }] of Object.entries(contract.colours)) {
    const heading = document.createElement("th");
    heading.textContent = name;
    $("colours").append(heading);
    for (const figure of ["efficiency", "crosstalk"]) {
      const value = document.createElement("td");
      value.id = `${figure}-${colour}`;
      $(figure).append(value);
    }
  }
}

async function start() {
  try {
    contract = await (await send("contract")).json();
  } catch (error) {
    report(error.message, true);
    return;
  }
  build();
  resize(contract.pixels);
  listen();
  update();
}

start();
