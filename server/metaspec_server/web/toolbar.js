// Controls of the drawing, and its keys.

import { $, make, svg } from "./dom.js";
import * as structures from "./structure.js";

const TOOLS = { pen: "p", line: "l", rectangle: "u", ellipse: "o", fill: "f", hand: "h" };
const NAMES = { pen: "Pen", line: "Line", rectangle: "Rectangle", ellipse: "Ellipse", fill: "Fill a region", hand: "Move the view" };
const STEPS = { left: [0, -1], right: [0, 1], up: [-1, 0], down: [1, 0] };
const EDITS = { i: "invert", n: "random", m: "columns", w: "rows", t: "transpose", d: "diagonal" };  // by key
const KEYS = [
  ["Arrows", "move the cursor; with Shift, by 8 pixels"],
  ["Space", "draws with the pen while held down; begins and ends a line, rectangle or ellipse; fills"],
  ["Backspace", "erases under the brush; with Shift, everything"],
  ["Escape", "drops a shape that was begun"],
  ["Ctrl + arrows", "shift the structure by a pixel; what leaves the cell comes in at the other side"],
  ["Ctrl + Z, Ctrl + Y", "undo, redo"],
  ["p l u o f h", "pen, line, rectangle, ellipse, fill, move the view"],
  ["x", "swaps solid and void of the pen"],
  ["[ ]", "smaller and larger brush"],
  ["+ − 0 9", "zoom in and out, one cell, 3 × 3 periods"],
  ["i n", "invert, random structure"],
  ["m w t d", "mirror left and right, up and down, at the diagonal; make symmetric at the diagonal"],
  ["Right button", "draws with the other material: with solid, it erases"],
  ["Shift while drawing", "straight strokes from the last one, lines at 45 degrees, squares and circles"],
];

export class Toolbar {
  constructor(editor) {
    this.editor = editor;
    this.build();
    this.listen();
    this.refresh();
  }

  build() {
    $("tools").append(...Object.entries(NAMES).map(([tool, name], number) => {
      const input = make("input", { type: "radio", name: "tool", value: tool, checked: number === 0, ariaLabel: name });
      return make("label", { title: `${name} (${TOOLS[tool]})` }, input, svg("svg", {}, svg("use", { href: `#i-${tool}` })));
    }));
    $("keys-list").append(...KEYS.flatMap(([key, meaning]) => [make("dt", {}, key), make("dd", {}, meaning)]));
  }

  listen() {
    const { editor } = this;
    $("drawing").addEventListener("change", () => this.take());
    $("width").addEventListener("input", () => this.take());
    for (const button of document.querySelectorAll("[data-edit]")) {
      button.addEventListener("click", () => this.edit(button.dataset.edit));
    }
    const zooms = {
      in: (view) => view.magnify(2), out: (view) => view.magnify(1 / 2), whole: (view) => view.whole(), periods: (view) => view.periods(),
    };
    for (const [name, zoom] of Object.entries(zooms)) {
      $(`zoom-${name}`).addEventListener("click", () => { zoom(editor.view); editor.repaint(); });
    }
    $("undo").addEventListener("click", () => editor.undo());
    $("redo").addEventListener("click", () => editor.redo());
    $("help").addEventListener("click", () => $("keys").showModal());
    document.addEventListener("keydown", (event) => this.anywhere(event));
    $("drawing").addEventListener("keydown", (event) => this.inside(event));
  }

  // Settings of the editor from the controls.
  take() {
    const chosen = (name) => document.querySelector(`[name=${name}]:checked`).value;
    Object.assign(this.editor.settings, {
      tool: chosen("tool"), material: Number(chosen("material")), width: Number($("width").value), symmetry: $("symmetry").value,
    });
    $("width-shown").textContent = `${$("width").value} px`;
    $("structure").classList.toggle("hand", chosen("tool") === "hand");
    this.editor.repaint();
  }

  edit(name) {
    const { editor } = this, { structure, pixels } = editor;
    const by = $("shift-by").value === "half" ? pixels / 2 : Number($("shift-by").value);
    const symmetric = $("symmetry").value === "diagonal";
    const changed = {
      invert: () => structures.inverted(structure),
      random: () => structures.randomised(pixels, symmetric),
      clear: () => new Uint8Array(structure.length),
      columns: () => structures.flippedColumns(structure, pixels),
      rows: () => structures.flippedRows(structure, pixels),
      transpose: () => structures.transposed(structure, pixels),
      diagonal: () => structures.diagonal(structure, pixels),
    }[name] ?? (() => structures.shifted(structure, pixels, by * STEPS[name][0], by * STEPS[name][1]));
    editor.set(changed());
  }

  // Undo and redo, wherever the focus is, but for fields of text.
  anywhere(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.matches?.("input[type=password], input[type=text]")) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) this.editor.redo();
    else this.editor.undo();
  }

  inside(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const choose = (name, value) => { document.querySelector(`[name=${name}][value="${value}"]`).checked = true; this.take(); };
    const widen = (by) => { $("width").value = Number($("width").value) + by; this.take(); };
    const tool = Object.keys(TOOLS).find((name) => TOOLS[name] === event.key);
    const actions = {
      x: () => choose("material", 1 - this.editor.settings.material),
      "[": () => widen(-1), "]": () => widen(1),
      "+": () => $("zoom-in").click(), "=": () => $("zoom-in").click(), "-": () => $("zoom-out").click(),
      0: () => $("zoom-whole").click(), 9: () => $("zoom-periods").click(),
    };
    if (event.key === "Backspace" && event.shiftKey) this.edit("clear");
    else if (tool) choose("tool", tool);
    else if (EDITS[event.key]) this.edit(EDITS[event.key]);
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  }

  // What can be done now, after each change.
  refresh() {
    const { editor } = this;
    $("undo").disabled = editor.locked || !editor.history.canUndo;
    $("redo").disabled = editor.locked || !editor.history.canRedo;
    $("structure").classList.toggle("locked", editor.locked);
    $("fill-factor").textContent = `${(100 * structures.fillFactor(editor.structure)).toFixed(1)} % solid`;
  }
}
