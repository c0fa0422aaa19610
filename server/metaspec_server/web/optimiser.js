// An optimisation, stepped by /gradient: filter, projection and optimiser run here, and the server keeps nothing.

import { Adam } from "./adam.js";
import { gradient, predict } from "./api.js";
import { npyBody } from "./npy.js";
import { packed } from "./structure.js";
import { betaSchedule } from "./topology.js";

const EVERY = 5;  // steps between evaluations of the binary structures

export class Optimiser {
  // `query` names the model and its conditions; `starts` are latents; `objective` has value and cotangent; `parameterisation` makes
  // densities of latents. All starts are stepped together, in one request.
  constructor({ model, query, pixels, size, objective, parameterisation, starts, steps }) {
    Object.assign(this, { model, query, pixels, size, objective, parameterisation, steps, step: 0 });
    this.betas = betaSchedule(steps);
    this.rows = starts.map((latent) => ({ adam: new Adam(latent), best: null, value: NaN }));
    this.curve = [];  // the best row's objective of the density, in each step
    this.binary = [];  // { step, value } of the best binary structure so far
    this.best = null;  // { value, structure, spectra }
    this.density = null;  // of the row that leads
  }

  get done() { return this.step >= this.steps; }

  // One step of all starts. An aborted one changes nothing, and can be made again.
  async advance(signal) {
    const beta = this.betas[this.step], { parameterisation, pixels, size } = this, count = this.rows.length;
    const smooth = this.rows.map(({ adam }) => parameterisation.smooth(adam.latent));
    const density = smooth.map((one) => parameterisation.project(one, beta));
    const structures = joined(density, pixels * pixels), shape = [count, pixels, pixels];
    const spectra = await predict(this.query, await npyBody([structures, shape]), { npy: true, signal });
    const of = (row) => spectra.values.subarray(row * size, (row + 1) * size);
    const values = this.rows.map((_, row) => this.objective.value(of(row)));
    const cotangents = joined(this.rows.map((_, row) => this.objective.cotangent(of(row))), size);
    const { channels, wavelengths_nm: wavelengths } = this.model.parameters;
    const question = await npyBody([structures, shape], [cotangents, [count, channels.length, wavelengths.length]]);
    const gradients = await gradient(this.query, question, count * size, structures.length, { npy: true, signal });
    const checks = this.step % EVERY === 0 || this.step === this.steps - 1 ? await this.check(smooth, signal) : null;
    // From here on nothing waits: the step is made whole.
    if (this.step && beta !== this.betas[this.step - 1]) this.rows.forEach((row) => { row.adam = new Adam(row.adam.latent); });
    this.rows.forEach((row, n) => {
      row.value = values[n];
      row.adam.step(parameterisation.pullBack(smooth[n], gradients.subarray(n * pixels * pixels, (n + 1) * pixels * pixels), beta));
    });
    const leader = values.indexOf(Math.max(...values));
    this.density = density[leader];
    this.curve.push(values[leader]);
    for (const found of checks ?? []) if (!this.best || found.value > this.best.value) this.best = found;
    if (checks) this.binary.push({ step: this.step, value: this.best.value });
    this.step += 1;
  }

  // The binary structures of all starts, with their spectra.
  async check(smooth, signal) {
    const structures = smooth.map((one) => this.parameterisation.binary(one));
    const bits = structures.map(packed), body = new Uint8Array(bits.length * bits[0].length);
    bits.forEach((one, row) => body.set(one, row * one.length));
    const { values } = await predict(this.query, body, { signal });
    return structures.map((structure, row) => {
      const spectra = values.slice(row * this.size, (row + 1) * this.size);
      return { structure, spectra, value: this.objective.value(spectra) };
    });
  }
}

// Arrays, one after the other.
function joined(arrays, size) {
  const result = new Float32Array(arrays.length * size);
  arrays.forEach((one, row) => result.set(one, row * size));
  return result;
}
