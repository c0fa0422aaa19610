// The structure on the canvas: tools for pointer and keyboard, history, and what is shown over it.

import { onFrame } from "./dom.js";
import { constrained, disc, ellipse, images, rectangle, region, stroke } from "./drawing.js";
import { History } from "./history.js";
import { shifted, wrap } from "./structure.js";
import { View } from "./view.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const FAR = 8;  // pixels that an arrow moves with Shift

export class Editor {
  // `changed(final)` is called after each change of the structure; `told(text)` with the place of the cursor.
  constructor(canvas, quadrants, pixels, structure, { changed, told }) {
    Object.assign(this, { canvas, quadrants, changed, told });
    this.settings = { tool: "pen", material: 1, width: 10, symmetry: "none" };
    this.locked = false;
    this.repaint = onFrame(() => this.paint());
    this.resize(pixels, structure);
    this.listen();
  }

  // Begins anew with a structure of another size.
  resize(pixels, structure) {
    Object.assign(this, { pixels, structure });
    this.view = new View(this.canvas, pixels, this.quadrants);
    this.history = new History(structure.slice());
    this.density = this.gradient = null;  // shown in place of the structure, and over it
    this.drag = null;  // a shape or stroke that is being drawn
    this.pointer = null;  // where the pointer is
    this.cursor = null;  // the pixel that the keyboard is at
    this.last = null;  // end of the last stroke
    this.canvas.setAttribute("aria-label", `Unit cell of ${pixels} by ${pixels} pixels`);
    this.repaint();
  }

  // Replaces the structure, as one step of the history.
  set(structure) {
    if (this.locked) return;
    this.drag = null;
    this.structure = structure;
    this.commit();
  }

  undo() { this.back(this.history.undo()); }
  redo() { this.back(this.history.redo()); }

  back(state) {
    if (!state || this.locked) return;
    this.drag = null;
    this.structure = state.slice();
    this.update(true);
  }

  commit() {
    this.history.push(this.structure.slice());
    this.update(true);
  }

  update(final) {
    this.gradient = null;  // it was that of another structure
    this.repaint();
    this.changed(final);
  }

  // While it is locked, densities of an optimisation are shown, and nothing can be drawn.
  lock(locked) {
    this.cancel();
    this.locked = locked;
    this.density = this.gradient = null;
    this.changed(false);
    this.repaint();
  }

  show(density) { this.density = density; this.repaint(); }
  overlay(gradient) { this.gradient = gradient; this.repaint(); }

  // A function that sets a pixel, its periodic images, and those under the symmetry, to a material.
  marker(material) {
    const { pixels, structure, settings } = this;
    const put = (row, column) => { structure[wrap(row, pixels) * pixels + wrap(column, pixels)] = material; };
    return (row, column) => {
      put(row, column);
      for (const image of images(settings.symmetry, wrap(row, pixels), wrap(column, pixels), pixels)) put(...image);
    };
  }

  begin(point, erases, straight) {
    const { tool, material } = this.settings;
    const from = tool === "pen" && straight && this.last ? this.last : point;
    this.drag = { tool, material: erases ? 1 - material : material, before: this.structure.slice(), anchor: from, to: from };
    this.extend([point], false);
    if (tool === "fill") this.end();
  }

  // Goes on to further points. A stroke keeps what it has drawn; a shape is drawn anew from where it began.
  extend(points, regular) {
    const { drag } = this, { width } = this.settings;
    for (const point of points) {
      const mark = this.marker(drag.material);
      if (drag.tool === "pen") stroke(drag.to, point, width, mark);
      drag.to = regular && drag.tool !== "pen" ? constrained(drag.anchor, point, drag.tool) : point;
    }
    if (drag.tool !== "pen") this.structure = drag.before.slice();
    const mark = this.marker(drag.material);
    if (drag.tool === "line") stroke(drag.anchor, drag.to, width, mark);
    if (drag.tool === "rectangle") rectangle(drag.anchor, drag.to, mark);
    if (drag.tool === "ellipse") ellipse(drag.anchor, drag.to, mark);
    if (drag.tool === "fill") region(drag.before, this.pixels, drag.to, mark);
    this.update(false);
  }

  end() {
    this.last = this.drag.to;
    this.drag = null;
    this.commit();
  }

  cancel() {
    if (!this.drag) return;
    this.structure = this.drag.before;
    this.drag = null;
    this.update(true);
  }

  listen() {
    const { canvas } = this;
    let panning = null;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      this.cursor = null;
      canvas.setPointerCapture(event.pointerId);
      if (this.settings.tool === "hand" || event.button === 1) {
        panning = this.view.at(event);
        event.preventDefault();
      } else if (!this.locked && !this.drag) {
        this.begin(this.view.at(event), event.button === 2 || event.button === 5, event.shiftKey);
      }
    });
    canvas.addEventListener("pointermove", (event) => {
      const point = this.view.at(event);
      this.pointer = point;
      if (panning) {
        this.view.pan(point[0] - panning[0], point[1] - panning[1]);
        panning = this.view.at(event);
      } else if (this.drag) {
        const coalesced = event.getCoalescedEvents?.() ?? [];
        this.extend((coalesced.length ? coalesced : [event]).map((one) => this.view.at(one)), event.shiftKey);
      }
      this.tell(point);
      this.repaint();
    });
    const release = () => {
      panning = null;
      if (this.drag) this.end();
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.repaint(); });
    canvas.addEventListener("blur", () => { this.cancel(); this.cursor = null; this.repaint(); });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;  // which scrolls the page
      event.preventDefault();
      this.view.magnify(event.deltaY < 0 ? 1.25 : 0.8, this.view.at(event));
      this.repaint();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("keyup", (event) => {
      if (event.key === " " && this.drag?.tool === "pen") this.end();
    });
    new ResizeObserver(() => this.repaint()).observe(canvas);
  }

  // Arrows move a cursor; Space draws there, or begins and ends a shape; Backspace erases; Escape drops a shape.
  key(event) {
    const step = ARROWS[event.key];
    if (step && (event.ctrlKey || event.metaKey)) {
      this.set(shifted(this.structure, this.pixels, ...step));
    } else if (step && !event.altKey) {
      const far = event.shiftKey ? FAR : 1;
      const from = this.cursor ?? this.middle().map((at, axis) => at - far * step[axis]);
      this.cursor = from.map((at, axis) => wrap(at + far * step[axis], this.pixels));
      this.view.reveal(this.cursor);
      if (this.drag) this.extend([this.cursor], false);
      this.tell(this.cursor);
      this.repaint();
    } else if (event.key === " " && !event.repeat) {
      this.cursor ??= this.middle();
      if (this.drag) this.end();
      else if (!this.locked && this.settings.tool !== "hand") this.begin(this.cursor, false, false);
    } else if (event.key === "Backspace" && !this.locked && !this.drag) {
      this.cursor ??= this.middle();
      disc(this.cursor, this.settings.width, this.marker(0));
      this.commit();
    } else if (event.key === "Escape" && this.drag) {
      this.cancel();
    } else if (event.key !== " ") {
      return;
    }
    event.preventDefault();
  }

  middle() { return [0, 0].map(() => this.pixels / 2 + 0.5); }

  tell(point) {
    const [row, column] = point.map((at) => wrap(Math.floor(at), this.pixels));
    this.told(`row ${row}, column ${column}, ${this.structure[row * this.pixels + column] ? "solid" : "void"}`);
  }

  paint() {
    const { tool, width, symmetry } = this.settings;
    const marks = [];
    const point = this.cursor ?? this.pointer;
    if (point && !this.locked && tool !== "hand") {
      const around = tool === "pen" || tool === "line" ? width / 2 : 0.5;
      const places = [point, ...images(symmetry, ...point, this.pixels + 1)];
      marks.push((context, thin) => places.forEach(([y, x]) => ring(context, thin, x, y, around, this.cursor !== null)));
    }
    this.view.paint(this.density ?? this.structure, this.gradient, marks);
  }
}

// The outline of the brush, legible on solid and on void; the keyboard's has a cross.
function ring(context, thin, x, y, radius, crossed) {
  const path = new Path2D();
  path.arc(x, y, Math.max(radius, 2 * thin), 0, 2 * Math.PI);
  if (crossed) {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + dx * (radius + 2 * thin), y + dy * (radius + 2 * thin));
      path.lineTo(x + dx * (radius + 9 * thin), y + dy * (radius + 9 * thin));
    }
  }
  for (const [style, size] of [["rgb(255 255 255 / 90%)", 3], ["rgb(0 0 0 / 90%)", 1.25]]) {
    context.strokeStyle = style;
    context.lineWidth = size * thin;
    context.stroke(path);
  }
}
