// The studio: draw a structure, and see the spectra that a model predicts for it. This module joins the others.

import { describe, json, models, predict } from "./api.js";
import { Conditions } from "./conditions.js";
import { $, make } from "./dom.js";
import { Editor } from "./editor.js";
import { Files } from "./files.js";
import { onScheme, showGallery } from "./gallery.js";
import { Latest } from "./latest.js";
import { jobsOf, structureOf } from "./links.js";
import { Merits } from "./merits.js";
import { objectives } from "./objectives.js";
import { Optimise } from "./optimise.js";
import { Overlay } from "./overlay.js";
import { Plot } from "./plot.js";
import { averaged, packed, randomised, thresholded } from "./structure.js";
import { Table } from "./table.js";
import { Toolbar } from "./toolbar.js";
import { Trust } from "./trust.js";

const STATES = { computing: "computing …", current: "", failed: "not computed", away: "waiting for the server …" };

// What the parts of the page share: the editor, facts of the server, the model in use, and the newest spectra.
class Studio {
  constructor(contract, structure) {
    Object.assign(this, { contract, model: null, described: false, merits: null, spectra: null, loaded: [] });
    const { pixels, quadrants } = contract;
    this.editor = new Editor($("structure"), quadrants, pixels, structure, {
      changed: (final) => this.changed(final),
      told: (text) => { $("place").textContent = text; },
    });
    this.toolbar = new Toolbar(this.editor);
    this.plot = new Plot($("plot"), $("legend"), contract);
    this.table = new Table(contract);
    this.overlay = new Overlay(this);
    this.conditions = new Conditions(() => this.latest.update());
    this.trust = new Trust(contract, this.conditions);
    this.files = new Files(this);
    this.optimise = new Optimise(this);
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

  // What was opened or saved, or why not.
  note(text, isError = false) {
    $("note").textContent = text;
    $("note").classList.toggle("error", isError);
  }

  changed(final) {
    this.toolbar.refresh();
    if (this.editor.locked) return;
    this.latest.update();
    if (final) this.files.remember();
  }

  // The list of models; the one of the address, or the default one, is chosen at first.
  async listModels() {
    const wanted = $("model").value || new URLSearchParams(location.search).get("model") || this.contract.default_model;
    const { known, loaded } = await models(this.contract.gradient_suffix);
    this.loaded = loaded;
    this.described = false;  // the model may be another one by now
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
    if (!this.described || this.model.name !== name) await this.use(await describe(name, packed(this.editor.structure)));
    const started = performance.now();
    const { text: conditions } = this.conditions;
    const answer = await predict(this.conditions.query(this.model), packed(this.editor.structure));
    return { ...answer, conditions, milliseconds: performance.now() - started };
  }

  arrived({ values, version, conditions, milliseconds }) {
    if (this.editor.locked) return;  // the optimiser shows what it finds
    const { merged_greens: merged } = this.model.parameters;
    const source = `${this.model.name} version ${version}${conditions}`;
    this.showSpectra(values, source);
    this.trust.later(() => this.editor.structure);
    this.overlay.refresh();
    const shared = Object.values(this.contract.colours).find(({ detectors }) => detectors.length > 1)?.detectors ?? [];
    this.report(`${source}, ${Math.round(milliseconds)} ms` +
      (merged ? `; ${shared.join(" and ")}: only their mean is known` : ""));
  }

  showSpectra(values, source = this.spectra.source) {
    const { wavelengths_nm: wavelengths, channels } = this.model.parameters;
    this.spectra = { values, wavelengths, channels, source };
    this.plot.show(this.spectra);
    this.table.show(this.merits.of(values));
  }

  // Takes a model into use. One of another device may have structures of another size, and other wavelengths.
  async use(model) {
    const { process, channels, wavelengths_nm: wavelengths } = model.parameters;
    this.model = model;
    this.described = true;
    this.conditions.offer(model.parameters);
    this.merits = new Merits(this.contract, { wavelengths, channels });
    const offered = objectives(this.merits, this.contract.colours);
    this.overlay.offer(offered);
    this.optimise.offer(offered);
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
  let linked = null, broken = "";
  try {
    linked = await structureOf(location.hash, contract.pixels);
  } catch (error) {
    broken = error.message;
  }
  const studio = new Studio(contract, linked ?? randomised(contract.pixels));
  studio.note(broken, true);
  const jobs = jobsOf(location.hash);
  if (jobs) Object.assign($("jobs"), { href: jobs.href, hidden: false, textContent: `jobs at ${jobs.host}` });
  studio.latest.update();
  const { pixels } = contract;
  await showGallery($("gallery"), pixels, (structure) =>
    studio.editor.set(thresholded(averaged(structure, pixels, pixels, studio.editor.pixels))));
}

start().catch((error) => {
  $("status").textContent = error.message;
  $("status").className = "error";
});
