// The panel that optimises what is drawn, or random starts: settings, progress, curve, and what comes after.

import { Away, comesBack } from "./api.js";
import { $, make, svg } from "./dom.js";
import { mended, narrowest } from "./features.js";
import { Optimiser } from "./optimiser.js";
import { waves } from "./structure.js";
import { Parameterisation, randomLatent } from "./topology.js";

const JUDGED = 20;  // steps between questions of how far to trust the best structure
const SETTINGS = ["objective", "from", "starts", "radius", "run-symmetry", "steps"];

export class Optimise {
  constructor(studio) {
    Object.assign(this, { studio, run: null, paused: false, stopped: null, objectives: [] });
    $("run-start").addEventListener("click", () => this.start());
    $("run-pause").addEventListener("click", () => this.pause());
    $("run-stop").addEventListener("click", () => this.stop());
    $("mend").addEventListener("click", () => this.mend());
    $("from").addEventListener("change", () => this.refresh());
    new ResizeObserver(() => this.draw()).observe($("curve"));
    this.refresh();
  }

  // The objectives that the model in use allows.
  offer(objectives) {
    const chosen = $("objective").value;
    this.objectives = objectives;
    $("objective").replaceChildren(...objectives.map(({ name, title }) => make("option", { value: name, selected: name === chosen }, title)));
  }

  refresh() {
    const running = this.run !== null;
    for (const name of SETTINGS) $(name).disabled = running;
    $("starts").disabled = running || $("from").value !== "random";
    for (const name of ["model", "key", "mend", "open", "open-folder"]) $(name).disabled = running;
    for (const control of document.querySelectorAll("[data-edit], #gallery button")) control.disabled = running;
    this.studio.conditions.lock(running);
    $("run-start").disabled = running;
    $("run-pause").disabled = $("run-stop").disabled = !running;
    $("run-pause").textContent = this.paused ? "Go on" : "Pause";
  }

  start() {
    const { model, editor, spectra, conditions } = this.studio;
    const numbers = ["starts", "radius", "steps"].map((name) => $(name));
    const wrong = numbers.find((input) => !input.reportValidity());
    if (wrong || !spectra) return;
    const [count, radius, steps] = numbers.map((input) => Number(input.value));
    const { pixels, period_um: period } = model.parameters.process;
    const parameterisation = new Parameterisation(pixels, radius / ((1e3 * period) / pixels), $("run-symmetry").value);
    const starts = $("from").value === "random" ? Array.from({ length: count }, () => randomLatent(waves(pixels)))
      : [parameterisation.latent(editor.structure)];
    const objective = this.objectives.find(({ name }) => name === $("objective").value);
    this.run = new Optimiser({ model, query: conditions.query(model), pixels, size: spectra.values.length, objective, parameterisation, starts, steps });
    Object.assign(this, { paused: false, stopped: new AbortController(), spread: null, unlike: false, seconds: 0 });
    $("curve").removeAttribute("hidden");
    editor.lock(true);
    this.refresh();
    this.go();
  }

  async go() {
    const { run, stopped: { signal } } = this;
    while (!run.done && !signal.aborted && !this.paused) {
      const started = performance.now();
      try {
        await run.advance(signal);
        if (run.step % JUDGED === 0 || run.done) await this.judge(run.best.structure);
      } catch (error) {
        if (signal.aborted) break;
        if (!(error instanceof Away)) { this.end(error.message); return; }
        this.say(`${error.message} The optimisation goes on when it is back.`);
        await comesBack();
        continue;
      }
      this.seconds += (performance.now() - started) / 1e3;
      this.show();
    }
    if (run.done || signal.aborted) this.end();
  }

  async judge(structure) {
    this.spread = await this.studio.trust.of(structure);
    this.studio.trust.show(this.spread);
  }

  pause() {
    this.paused = !this.paused;
    this.refresh();
    if (this.paused) this.say(`${this.progress()}; paused`);
    else this.go();
  }

  stop() {
    this.stopped.abort();
    if (this.paused) this.end();
  }

  // Leaves the best binary structure as what is drawn.
  end(problem = "") {
    const { run, studio } = this;
    if (!run) return;
    this.run = null;
    this.paused = false;
    studio.editor.lock(false);
    if (run.best) studio.editor.set(run.best.structure);
    this.refresh();
    this.say(problem || `${this.progress(run)}; ${run.done ? "done" : "stopped"} after ${this.seconds.toFixed(0)} s`, problem !== "");
    this.draw(run);
  }

  progress(run = this.run) {
    const best = run.best ? `, best ${run.best.value.toFixed(4)}` : "";
    return `Step ${run.step} of ${run.steps}${best}`;
  }

  show() {
    const { run, studio } = this;
    studio.editor.show(run.density);
    const left = ((run.steps - run.step) * this.seconds) / run.step;
    this.say(`${this.progress()}, ${left.toFixed(0)} s to go`);
    if (run.binary.at(-1)?.step === run.step - 1) studio.showSpectra(run.best.spectra);
    this.draw(run);
  }

  say(text, isError = false) {
    $("run-status").textContent = text;
    $("run-status").classList.toggle("error", isError);
  }

  // The objective of the densities, and of the best binary structure so far, over the steps.
  draw(run = this.shown) {
    this.shown = run;
    const root = $("curve"), { width, height } = root.getBoundingClientRect();
    if (!run || !run.curve.length || !width) return;
    const values = [...run.curve, ...run.binary.map(({ value }) => value)];
    const [low, high] = [Math.floor(10 * Math.min(...values)) / 10, Math.ceil(10 * Math.max(...values) + 1e-6) / 10];
    const x = (step) => 40 + ((width - 52) * step) / Math.max(1, run.steps - 1), y = (value) => height - 24 - ((height - 34) * (value - low)) / (high - low);
    const path = (points) => "M" + points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join("L");
    const parts = [];
    for (let tenth = Math.round(10 * low); tenth <= Math.round(10 * high); tenth++) {
      parts.push(svg("line", { class: "grid", x1: 40, x2: width - 12, y1: y(tenth / 10), y2: y(tenth / 10) }),
        svg("text", { x: 34, y: y(tenth / 10) + 4, "text-anchor": "end" }, (tenth / 10).toFixed(1)));
    }
    const best = run.binary.flatMap(({ step, value }, n) => [...(n ? [[step, run.binary[n - 1].value]] : []), [step, value]]);
    root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    root.replaceChildren(...parts,
      svg("text", { x: 40, y: height - 6 }, "0"), svg("text", { x: width - 12, y: height - 6, "text-anchor": "end" }, `step ${run.steps}`),
      svg("path", { class: "of-density", d: path([...run.curve.entries()]) }), svg("path", { class: "of-binary", d: path(best) }));
    $("curve-legend").hidden = false;
  }

  // Widens or removes what is narrower than the width that is set, in what is drawn.
  mend() {
    const { editor, model } = this.studio;
    if (!$("width-nm").reportValidity() || !model) return;
    const pixel = (1e3 * model.parameters.process.period_um) / editor.pixels;
    const width = Math.ceil(Number($("width-nm").value) / pixel - 1e-9);
    const after = mended(editor.structure, editor.pixels, width, $("run-symmetry").value);
    const changed = after.reduce((sum, value, i) => sum + (value !== editor.structure[i]), 0);
    if (changed) editor.set(after);
    const widths = narrowest(after, editor.pixels).map((one) => (one * pixel).toFixed(0));
    this.say(`${changed ? `${changed} pixels mended` : "Nothing to mend"}: narrowest solid ${widths[0]} nm, void ${widths[1]} nm`);
  }
}
