// The part of the periodic plane that a canvas shows, and its pixels: structure, gradient, outlines.

import { colour } from "./dom.js";
import { wrap } from "./structure.js";

const CLOSEST = 16;  // largest magnification
const STRONGEST = 0.85;  // opacity of the largest gradient

export class View {
  constructor(canvas, pixels, quadrants) {
    Object.assign(this, { canvas, pixels, quadrants, zoom: 1, corner: [0, 0] });
    this.tile = document.createElement("canvas");
    this.tile.width = this.tile.height = pixels;
    this.over = this.tile.cloneNode();
  }

  get span() { return this.pixels / this.zoom; }  // pixels along a side of the canvas

  // Point of the plane under a place of the window.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map(
      (share, axis) => this.corner[axis] + share * this.span);
  }

  // Changes the magnification, and keeps a point where it is.
  magnify(factor, point = this.corner.map((at) => at + this.span / 2)) {
    const zoom = Math.min(CLOSEST, Math.max(1 / 3, this.zoom * factor));
    this.corner = this.corner.map((at, axis) => point[axis] - ((point[axis] - at) * this.zoom) / zoom);
    this.zoom = zoom;
    if (zoom === 1 && factor < 1) this.whole();
  }

  whole() { Object.assign(this, { zoom: 1, corner: [0, 0] }); }
  periods() { Object.assign(this, { zoom: 1 / 3, corner: [-this.pixels, -this.pixels] }); }

  pan(down, right) {
    this.corner = [this.corner[0] - down, this.corner[1] - right].map((at) => (this.zoom < 1 ? at : wrap(at, this.pixels)));
  }

  // Moves the view until it shows a point.
  reveal(point) {
    this.corner = this.corner.map((at, axis) => Math.min(Math.max(at, point[axis] + 1 - this.span), point[axis] - 1));
    if (this.zoom <= 1) this.zoom === 1 ? this.whole() : this.periods();
  }

  // Draws density, gradient (or null), and what `marks` adds: functions of the context in units of pixels.
  paint(density, gradient, marks) {
    const box = this.canvas.getBoundingClientRect();
    const side = Math.max(1, Math.round(box.width * window.devicePixelRatio));
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.imageSmoothingEnabled = false;
    this.fillTile(density);
    if (gradient) this.fillGradient(gradient);
    const scale = side / this.span;
    context.setTransform(scale, 0, 0, scale, -this.corner[1] * scale, -this.corner[0] * scale);
    const [first, last] = [0, this.span].map((more) => this.corner.map((at) => Math.floor((at + more) / this.pixels)));
    for (let row = first[0]; row <= last[0]; row++) {
      for (let column = first[1]; column <= last[1]; column++) {
        const place = [column * this.pixels, row * this.pixels, this.pixels, this.pixels];
        context.drawImage(this.tile, ...place);
        if (gradient) context.drawImage(this.over, ...place);
      }
    }
    this.outline(context, scale);
    for (const mark of marks) mark(context, window.devicePixelRatio / scale);
  }

  fillTile(density) {
    const [solid, empty] = [colour("--solid"), colour("--void")];
    const image = new ImageData(this.pixels, this.pixels);
    for (let i = 0; i < density.length; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = empty[c] + density[i] * (solid[c] - empty[c]);
      image.data[4 * i + 3] = 255;
    }
    this.tile.getContext("2d").putImageData(image, 0, 0);
  }

  fillGradient(gradient) {
    const [more, less] = [colour("--more"), colour("--less")];
    const most = gradient.reduce((found, value) => Math.max(found, Math.abs(value)), 1e-30);
    const image = new ImageData(this.pixels, this.pixels);
    for (let i = 0; i < gradient.length; i++) {
      const over = gradient[i] > 0 ? more : less;
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = over[c];
      image.data[4 * i + 3] = 255 * STRONGEST * Math.sqrt(Math.abs(gradient[i]) / most);
    }
    this.over.getContext("2d").putImageData(image, 0, 0);
  }

  // Edges of the cell and of the detectors' quadrants, with their names where the whole cell is shown.
  outline(context, scale) {
    const { pixels } = this, thin = window.devicePixelRatio / scale;
    context.lineWidth = thin;
    context.strokeStyle = "rgb(127 127 127 / 75%)";
    context.beginPath();
    for (let at = -pixels; at <= 2 * pixels; at += pixels / 2) {
      context.moveTo(at, -pixels);
      context.lineTo(at, 2 * pixels);
      context.moveTo(-pixels, at);
      context.lineTo(2 * pixels, at);
    }
    context.setLineDash([4 * thin, 4 * thin]);
    context.stroke();
    context.setLineDash([]);
    context.lineWidth = 2 * thin;
    if (this.zoom < 1) context.strokeRect(0, 0, pixels, pixels);
    context.font = `bold ${13 * thin}px system-ui, sans-serif`;
    context.textBaseline = "top";
    if (this.zoom > 1) return;
    for (const [name, [row, column]] of Object.entries(this.quadrants)) {
      const [x, y] = [(column * pixels) / 2 + 7 * thin, (row * pixels) / 2 + 7 * thin];
      context.lineWidth = 3 * thin;
      context.strokeStyle = `rgb(${colour("--void").join(" ")})`;
      context.strokeText(name, x, y);
      context.fillStyle = `rgb(${colour("--ink").join(" ")})`;
      context.fillText(name, x, y);
    }
  }
}
