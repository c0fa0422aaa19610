// The gradient over the drawing: where more solid would raise a figure of merit, and where less would.

import { gradient } from "./api.js";
import { $, make } from "./dom.js";
import { Latest } from "./latest.js";
import { packed } from "./structure.js";

// A body of /gradient: packed bits, then the cotangent.
export function question(structure, cotangent) {
  const bits = packed(structure);
  const body = new Uint8Array(bits.length + 4 * cotangent.length);
  body.set(bits);
  const view = new DataView(body.buffer, bits.length);
  cotangent.forEach((value, i) => view.setFloat32(4 * i, value, true));
  return body;
}

export class Overlay {
  constructor(studio) {
    this.studio = studio;
    this.latest = new Latest({
      ask: () => this.ask(),
      arrived: ({ pixels, structure }) => {
        if (pixels && structure === studio.editor.structure) studio.editor.overlay(pixels);
      },
      state: (name, error) => {
        $("overlay").setAttribute("aria-busy", String(name === "computing"));
        if (name === "failed") { $("overlay").value = ""; studio.report(error.message, true); }
      },
      returned: async () => {},
    });
    $("overlay").addEventListener("change", () => this.refresh());
  }

  // The objectives that a model allows; the chosen one stays where there still is one.
  offer(objectives) {
    const chosen = $("overlay").value;
    this.objectives = objectives;
    $("overlay").replaceChildren(make("option", { value: "" }, "off"),
      ...objectives.map(({ name, title }) => make("option", { value: name, selected: name === chosen }, title)));
  }

  // Called when there are spectra of what is drawn.
  refresh() {
    $("scale").hidden = !$("overlay").value;
    if ($("overlay").value) this.latest.update();
    else this.studio.editor.overlay(null);
  }

  async ask() {
    const objective = this.objectives.find(({ name }) => name === $("overlay").value);
    const { editor, model, spectra, conditions } = this.studio;
    if (!objective || !spectra) return { pixels: null };
    const { structure } = editor, asked = structure.slice();
    const body = question(asked, objective.cotangent(spectra.values));
    const pixels = await gradient(conditions.query(model), body, spectra.values.length, structure.length);
    return { pixels, structure: asked.every((value, i) => value === editor.structure[i]) ? editor.structure : null };
  }
}
