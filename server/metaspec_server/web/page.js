// The studio: draw a structure, and see the spectra that a model predicts for it. This module joins the others.

import { describe, json, models, predict } from "./api.js";
import { $, make } from "./dom.js";
import { Editor } from "./editor.js";
import { onScheme, showGallery } from "./gallery.js";
import { Latest } from "./latest.js";
import { Merits } from "./merits.js";
import { objectives } from "./objectives.js";
import { Overlay } from "./overlay.js";
import { Plot } from "./plot.js";
import { packed, randomised } from "./structure.js";
import { Table } from "./table.js";
import { Toolbar } from "./toolbar.js";
import { Trust } from "./trust.js";

const STATES = { computing: "computing …", current: "", failed: "not computed", away: "waiting for the server …" };

// What the parts of the page share: the editor, facts of the server, the model in use, and the newest spectra.
class Studio {
  constructor(contract) {
    Object.assign(this, { contract, model: null, merits: null, spectra: null, loaded: [] });
    const { pixels, quadrants } = contract;
    this.editor = new Editor($("structure"), quadrants, pixels, randomised(pixels), {
      changed: () => this.changed(),
      told: (text) => { $("place").textContent = text; },
    });
    this.toolbar = new Toolbar(this.editor);
    this.plot = new Plot($("plot"), $("legend"), contract);
    this.table = new Table(contract);
    this.overlay = new Overlay(this);
    this.trust = new Trust(contract);
    this.latest = new Latest({
      ask: () => this.ask(),
      arrived: (answer) => this.arrived(answer),
      state: (name, error) => this.state(name, error),
      returned: () => this.listModels(),
    });
    $("model").addEventListener("change", () => this.latest.update());
    $("key").addEventListener("change", () => this.restart());
    $("pin").addEventListener("click", () => this.pin(this.plot.pinned ? null : this.spectra));
    onScheme(() => this.editor.repaint());
  }

  report(text, isError = false) {
    $("status").textContent = text;
    $("status").classList.toggle("error", isError);
  }

  state(name, error) {
    $("results").dataset.state = name;
    $("state").textContent = STATES[name];
    $("away").hidden = name !== "away";
    $("away").textContent = name === "away" ? `${error.message} The drawing is kept; spectra follow when it is back.` : "";
    if (name === "failed") this.report(error.message, true);
  }

  changed() {
    this.toolbar.refresh();
    this.latest.update();
  }

  // The list of models; the one of the address, or the default one, is chosen at first.
  async listModels() {
    const wanted = $("model").value || new URLSearchParams(location.search).get("model") || this.contract.default_model;
    const { known, loaded } = await models(this.contract.gradient_suffix);
    this.loaded = loaded;
    this.model = null;  // it may be another one by now
    $("model").replaceChildren(...[...new Set([...known, wanted])].map((name) =>
      make("option", { value: name, selected: name === wanted }, name)));
  }

  async restart() {
    await this.listModels().catch((error) => this.report(error.message, true));
    this.latest.update();
  }

  // Spectra of what is drawn, by the model that is chosen.
  async ask() {
    if (!$("model").value) await this.listModels();
    const name = $("model").value;
    if (this.model?.name !== name) await this.use(await describe(name, packed(this.editor.structure)));
    const { structure } = this.editor, started = performance.now();
    return { ...await predict(name, packed(structure)), structure, milliseconds: performance.now() - started };
  }

  arrived({ values, version, structure, milliseconds }) {
    const { wavelengths_nm: wavelengths, channels, merged_greens: merged } = this.model.parameters;
    this.spectra = { values, wavelengths, channels };
    this.plot.show(this.spectra);
    this.table.show(this.merits.of(values));
    this.trust.later(() => this.editor.structure);
    this.overlay.refresh();
    const shared = Object.values(this.contract.colours).find(({ detectors }) => detectors.length > 1)?.detectors ?? [];
    this.report(`${this.model.name} version ${version}, ${Math.round(milliseconds)} ms` +
      (merged ? `; ${shared.join(" and ")}: only their mean is known` : ""));
  }

  // Takes a model into use. One of another device may have structures of another size, and other wavelengths.
  async use(model) {
    const { process, channels, wavelengths_nm: wavelengths } = model.parameters;
    this.model = model;
    this.merits = new Merits(this.contract, { wavelengths, channels });
    this.overlay.offer(objectives(this.merits, this.contract.colours));
    if (process.pixels !== this.editor.pixels) this.editor.resize(process.pixels, randomised(process.pixels));
    await this.trust.choose(model, this.loaded);
  }

  pin(spectra) {
    this.plot.pin(spectra);
    this.table.pin(spectra && new Merits(this.contract, spectra).of(spectra.values));
    $("pin").setAttribute("aria-pressed", String(spectra !== null));
  }
}

async function start() {
  const contract = await json("contract");
  const studio = new Studio(contract);
  studio.latest.update();
  await showGallery($("gallery"), contract.pixels, (structure) => studio.editor.set(structure));
}

start().catch((error) => {
  $("status").textContent = error.message;
  $("status").className = "error";
});
