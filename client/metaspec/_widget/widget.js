// The structure widget: draws a structure, and shows the spectra and the gradient that Python answers with.
// Channels, colours and objectives come from Python: see metaspec.widget.StructureWidget for the traits.

const SVG = "http://www.w3.org/2000/svg";
const PLOT = { width: 420, height: 230, left: 36, right: 8, top: 8, bottom: 34 };
const SOLID = [92, 92, 98], VOID = [251, 250, 246], RAISES = [230, 120, 20], LOWERS = [20, 110, 230];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// A copy of bytes that Python sent: they may lie anywhere in a larger buffer.
function copied(view) {
  return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
}

function labelled(text, input) {
  return make("label", {}, text + " ", input);
}

function render({ model, el }) {
  const facts = model.get("facts");
  const [rows, columns] = facts.pixels;
  let pixels = new Uint8Array(copied(model.get("pixels")));
  let sent = pixels.slice(); // the pixels that this view sent last
  let waiting = false, changed = false; // one request at a time: the next one has the newest pixels
  let last = null; // where the pen was

  const canvas = make("canvas", { width: columns, height: rows, className: "metaspec-canvas" });
  canvas.setAttribute("aria-label", "structure: dark is solid");
  const places = facts.channels.filter((channel) => channel.place).map((channel) => {
    const [row, column] = channel.place;
    const mark = make("span", { className: "metaspec-place", textContent: channel.name });
    Object.assign(mark.style, { color: channel.colour, top: `${50 * row + 1}%`, left: `${50 * column + 1}%` });
    return mark;
  });
  const pen = make("select", {}, make("option", { value: "1" }, "solid"), make("option", { value: "0" }, "void"));
  const width = make("input", { type: "range", min: "1", max: "24", value: "8" });
  const mirror = make("input", { type: "checkbox" });
  const names = ["", ...facts.objectives];
  const objective = make("select", {}, ...names.map((name) => make("option", { value: name }, name || "none")));
  const clear = make("button", { type: "button", onclick: () => fill(() => 0) }, "Clear");
  const invert = make("button", { type: "button", onclick: () => fill((pixel) => 1 - pixel) }, "Invert");
  const plot = draw("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, class: "metaspec-plot", role: "img" });
  const table = make("table"), status = make("output", { className: "metaspec-status" });
  el.classList.add("metaspec-widget");
  el.append(
    make(
      "div",
      {},
      make("div", { className: "metaspec-cell" }, canvas, ...places),
      make("div", { className: "metaspec-tools" }, labelled("Pen", pen), labelled("Width", width), labelled("Mirror", mirror), clear, invert),
    ),
    make("div", {}, labelled("Gradient of", objective), plot, table, status),
  );

  function fill(value) {
    pixels = pixels.map(value);
    edited();
  }

  // A disc around a point of the periodic cell.
  function dot(y, x) {
    const radius = Number(width.value) / 2, solid = Number(pen.value);
    for (let row = Math.ceil(y - radius); row <= y + radius; row++) {
      for (let column = Math.ceil(x - radius); column <= x + radius; column++) {
        if ((row - y) ** 2 + (column - x) ** 2 > radius ** 2) continue;
        const i = ((row % rows) + rows) % rows, j = ((column % columns) + columns) % columns;
        pixels[i * columns + j] = solid;
        if (mirror.checked && rows === columns) pixels[j * columns + i] = solid;
      }
    }
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const y = ((event.clientY - box.top) / box.height) * rows - 0.5;
    return [y, ((event.clientX - box.left) / box.width) * columns - 0.5];
  }

  function stroke(to) {
    const from = last ?? to, steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let step = 0; step <= steps; step++) {
      const share = step / steps;
      dot(from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1]));
    }
    last = to;
    edited();
  }

  function edited() {
    show();
    ask();
  }

  function ask() {
    changed = waiting;
    if (waiting) return;
    waiting = true;
    sent = pixels.slice();
    model.set("pixels", new DataView(sent.buffer));
    model.set("objective", objective.value);
    model.set("serial", model.get("serial") + 1);
    model.save_changes();
  }

  function show() {
    const gradient = model.get("answer").gradient ? new Float32Array(copied(model.get("answer").gradient)) : null;
    const most = gradient ? gradient.reduce((found, value) => Math.max(found, Math.abs(value)), 1e-30) : 1;
    const image = new ImageData(columns, rows);
    pixels.forEach((pixel, n) => {
      const material = pixel ? SOLID : VOID, over = gradient && gradient[n] > 0 ? RAISES : LOWERS;
      const share = gradient ? 0.85 * Math.abs(gradient[n] / most) : 0;
      for (let c = 0; c < 3; c++) image.data[4 * n + c] = (1 - share) * material[c] + share * over[c];
      image.data[4 * n + 3] = 255;
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function answered() {
    const answer = model.get("answer");
    if (answer.serial === model.get("serial")) waiting = false;
    status.textContent = answer.message;
    status.classList.toggle("metaspec-failed", answer.failed);
    if (answer.spectra) {
      curves(new Float32Array(copied(answer.spectra)), facts.wavelengths_nm);
      const cells = answer.numbers.map(([name, value]) => [make("th", {}, name), make("td", {}, value.toFixed(4))]);
      table.replaceChildren(...cells.map((pair) => make("tr", {}, ...pair)));
    }
    show();
    if (changed) ask();
  }

  function curves(spectra, wavelengths) {
    const { width, height, left, right, top, bottom } = PLOT, count = wavelengths.length;
    const most = spectra.reduce((found, value) => Math.max(found, value), 0.1) * 1.05;
    const [first, end] = [wavelengths[0], wavelengths[count - 1]];
    const x = (nm) => left + ((width - left - right) * (nm - first)) / (end - first);
    const y = (value) => top + (height - top - bottom) * (1 - value / most);
    const bands = facts.bands.map(({ colour, band_nm: [low, high] }) => {
      const [a, b] = [Math.max(low, first), Math.min(high, end)];
      return draw("rect", { x: x(a), y: top, width: Math.max(0, x(b) - x(a)), height: y(0) - top, fill: colour, opacity: 0.08 });
    });
    const lines = facts.channels.map(({ name, colour }, n) => {
      const values = spectra.subarray(n * count, (n + 1) * count);
      const points = Array.from(values, (value, k) => `${x(wavelengths[k]).toFixed(1)},${y(value).toFixed(1)}`);
      return draw("polyline", { points: points.join(" "), stroke: colour, fill: "none", "stroke-width": 1.5, "data-channel": name });
    });
    plot.replaceChildren(
      ...bands,
      draw("path", { d: `M${left} ${top}V${y(0)}H${width - right}`, class: "metaspec-axis" }),
      ...lines,
      draw("text", { x: left, y: height - 20 }, `${first}`),
      draw("text", { x: width - right, y: height - 20, "text-anchor": "end" }, `${end}`),
      draw("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "wavelength (nm)"),
      draw("text", { x: left - 4, y: top + 10, "text-anchor": "end" }, most.toFixed(2)),
      draw("text", { x: left - 4, y: y(0), "text-anchor": "end" }, "0"),
    );
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) stroke(place(event));
  });
  objective.addEventListener("change", ask);

  function given() {
    const found = new Uint8Array(copied(model.get("pixels")));
    if (found.every((pixel, n) => pixel === sent[n])) return; // an echo: the pen may be further by now
    sent = found;
    pixels = found.slice();
    show();
  }

  function chosen() {
    objective.value = model.get("objective");
  }

  model.on("change:answer", answered);
  model.on("change:pixels", given);
  model.on("change:objective", chosen);
  chosen();
  answered();
  return () => {
    model.off("change:answer", answered);
    model.off("change:pixels", given);
    model.off("change:objective", chosen);
  };
}

export default { render };
