// The plot of spectra: bands of the colours, curves, pinned curves, and the values under the pointer.

import { make, svg } from "./dom.js";

const MARGIN = { left: 52, right: 14, top: 10, bottom: 44 };

export class Plot {
  // `root` is an empty svg element, `legend` an element for the names and values of the channels.
  constructor(root, legend, contract) {
    Object.assign(this, { root, legend, contract, spectra: null, pinned: null, at: null });
    new ResizeObserver(() => this.draw()).observe(root);
    const follow = (event) => this.read(event);
    root.addEventListener("pointermove", follow);
    root.addEventListener("pointerdown", follow);
    root.addEventListener("pointerleave", () => { if (document.activeElement !== root) this.point(null); });
    root.addEventListener("blur", () => this.point(null));
    root.addEventListener("keydown", (event) => this.key(event));
  }

  // Spectra are { values, wavelengths, channels }.
  show(spectra) { this.spectra = spectra; this.draw(); }
  pin(spectra) { this.pinned = spectra; this.draw(); }

  scales() {
    const { wavelengths } = this.spectra;
    const { width, height } = this.root.getBoundingClientRect();
    const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
    const [first, last] = [wavelengths[0], wavelengths[wavelengths.length - 1]];
    const most = [this.spectra, this.pinned].filter(Boolean).flatMap(({ values }) => values.reduce((a, b) => Math.max(a, b), 0));
    const top = Math.max(0.4, Math.ceil(10 * Math.max(...most) - 1e-6) / 10);
    return {
      width, height, right, bottom, first, last, top,
      x: (nm) => MARGIN.left + ((right - MARGIN.left) * (nm - first)) / (last - first),
      y: (value) => bottom - ((bottom - MARGIN.top) * value) / top,
    };
  }

  draw() {
    if (!this.spectra || !this.root.getBoundingClientRect().width) return;
    const s = this.scales();
    this.root.setAttribute("viewBox", `0 0 ${s.width} ${s.height}`);
    const curves = [this.pinned && this.curves(this.pinned, s, "pinned"), this.curves(this.spectra, s, "current")];
    this.reader = svg("g", { class: "reader" });
    this.root.replaceChildren(...this.bands(s), ...this.axes(s), ...curves.filter(Boolean).flat(), this.reader);
    this.root.setAttribute("aria-valuemin", s.first);
    this.root.setAttribute("aria-valuemax", s.last);
    this.drawReader();
  }

  bands({ x, bottom, first, last }) {
    return Object.entries(this.contract.colours).map(([colour, { band_nm: [low, high] }]) => {
      const [from, to] = [Math.max(low, first), Math.min(high, last)].map(x);
      const place = { x: from, y: MARGIN.top, width: Math.max(0, to - from), height: bottom - MARGIN.top };
      return svg("rect", { class: `band band-${colour}`, ...place });
    });
  }

  axes({ x, y, width, right, bottom, first, last, top }) {
    const parts = [];
    const text = (attributes, content) => parts.push(svg("text", attributes, content));
    const every = top > 0.65 ? 2 : 1;
    for (let tenth = 0; tenth <= 10 * top + 1e-9; tenth += every) {
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tenth / 10), y2: y(tenth / 10) }));
      text({ x: MARGIN.left - 8, y: y(tenth / 10) + 4, "text-anchor": "end" }, (tenth / 10).toFixed(1));
    }
    const step = width < 450 ? 100 : 50;
    for (let nm = Math.ceil(first / step) * step; nm <= last; nm += step) {
      parts.push(svg("line", { class: "tick", x1: x(nm), x2: x(nm), y1: bottom, y2: bottom + 5 }));
      text({ x: x(nm), y: bottom + 19, "text-anchor": nm === last ? "end" : "middle" }, `${nm}`);
    }
    text({ class: "title", x: (MARGIN.left + right) / 2, y: bottom + 38, "text-anchor": "middle" }, "wavelength in nm");
    const middle = (MARGIN.top + bottom) / 2;
    text({ class: "title", "text-anchor": "middle", transform: `translate(13 ${middle}) rotate(-90)` }, "efficiency");
    return parts;
  }

  curves({ values, wavelengths, channels }, { x, y }, kind) {
    return channels.map((name, channel) => {
      const points = wavelengths.map((nm, w) => `${x(nm).toFixed(1)},${y(values[channel * wavelengths.length + w]).toFixed(1)}`);
      return svg("path", { class: `curve ${kind} channel-${name}`, d: "M" + points.join("L") });
    });
  }

  read(event) {
    if (!this.spectra) return;
    const { x, first, last } = this.scales();
    const box = this.root.getBoundingClientRect();
    const nm = first + ((event.clientX - box.left - x(first)) / (x(last) - x(first))) * (last - first);
    this.point(nearest(this.spectra.wavelengths, nm));
  }

  key(event) {
    if (!this.spectra) return;
    const last = this.spectra.wavelengths.length - 1, at = this.at ?? Math.round(last / 2);
    const far = event.shiftKey ? 10 : 1;
    const next = { ArrowLeft: at - far, ArrowRight: at + far, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.point(Math.min(last, Math.max(0, next)));
  }

  point(at) {
    this.at = at;
    this.drawReader();
  }

  // The line under the pointer, and the values there beside the names of the channels.
  drawReader() {
    const { spectra, pinned, at } = this;
    if (!spectra) return;
    const s = this.scales(), { wavelengths, channels } = spectra;
    const valueOf = (one, name) => {
      const channel = one.channels.indexOf(name), w = nearest(one.wavelengths, wavelengths[at]);
      return channel < 0 ? null : one.values[channel * one.wavelengths.length + w];
    };
    const shown = (value) => (value === null ? "" : value.toFixed(3));
    const entries = channels.map((name) => {
      const [now, before] = at === null ? [null, null] : [valueOf(spectra, name), pinned && valueOf(pinned, name)];
      return { name, now, before };
    });
    this.legend.replaceChildren(
      ...entries.map(({ name, now, before }) => make("span", { className: `entry channel-${name}` },
        make("i", { className: "swatch" }), name, make("b", {}, shown(now)), ...(before === null ? [] : [make("small", {}, shown(before))]))));
    this.reader.replaceChildren();
    if (at === null) return;
    const x = s.x(wavelengths[at]), left = x > s.right - 70;
    this.reader.append(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: s.bottom }),
      svg("text", { x: left ? x - 6 : x + 6, y: MARGIN.top + 14, "text-anchor": left ? "end" : "start" }, `${wavelengths[at]} nm`),
      ...entries.map(({ name, now }) => svg("circle", { class: `channel-${name}`, cx: x, cy: s.y(now), r: 3.5 })));
    this.root.setAttribute("aria-valuenow", wavelengths[at]);
    this.root.setAttribute("aria-valuetext",
      `${wavelengths[at]} nm: ${entries.map(({ name, now }) => `${name} ${shown(now)}`).join(", ")}`);
  }
}

function nearest(wavelengths, nm) {
  let best = 0;
  wavelengths.forEach((one, w) => { if (Math.abs(one - nm) < Math.abs(wavelengths[best] - nm)) best = w; });
  return best;
}
