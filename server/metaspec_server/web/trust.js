// How far to trust a prediction: predictions for symmetric images of a structure should agree. How much they deviate tells
// kinds of structures that the model was taught from others. A model that states its spread is asked, this one or another one.

import { describe, predict } from "./api.js";
import { $ } from "./dom.js";
import { Merits } from "./merits.js";
import { packed } from "./structure.js";

const IDLE = 350;  // ms without a change, after which another model is asked
const COMMON = "0.99";  // quantile of the spread of test structures
const BEYOND = 1.2;  // times that quantile is unlike them: with version 1, good designs reached 1.05 of it, noise 1.5 to 2.7

export class Trust {
  constructor(contract, conditions) {
    Object.assign(this, { contract, conditions, judge: null, merits: null, limit: NaN, waiting: null, busy: false });
  }

  // Chooses who judges: the model in use, or the first of the others that states its spread for the same device.
  async choose(model, others) {
    this.judge = null;
    for (const name of [model.name, ...others.filter((other) => other !== model.name)]) {
      const one = name === model.name ? model : await describe(name).catch(() => null);
      if (!one?.parameters.channels.includes(this.contract.spread)) continue;
      if (JSON.stringify(one.parameters.process) !== JSON.stringify(model.parameters.process)) continue;
      this.judge = one;
      this.merits = new Merits(this.contract, { wavelengths: one.parameters.wavelengths_nm, channels: one.parameters.channels });
      this.limit = one.parameters.metrics?.test?.spread?.quantiles?.[COMMON] ?? NaN;
      return;
    }
  }

  // The spread of a structure; null where no model states one.
  async of(structure) {
    if (!this.judge) return null;
    const { values } = await predict(this.conditions.query(this.judge), packed(structure));
    return this.merits.of(values).spread;
  }

  // Judges what is drawn, once it rests. `current()` is the structure that is drawn then.
  later(current) {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(async () => {
      const structure = current();
      const spread = await this.of(structure).catch(() => null);
      if (structure === current()) this.show(spread);
    }, IDLE);
  }

  isUnlike(spread) { return spread !== null && spread > BEYOND * this.limit; }

  show(spread) {
    const root = $("trust");
    const unlike = this.isUnlike(spread);
    root.classList.toggle("warns", unlike);
    if (spread === null) {
      root.textContent = "";
      return;
    }
    const usual = Number.isFinite(this.limit) ? `; 99 % of the test structures stay below ${this.limit.toFixed(4)}` : "";
    root.textContent = (unlike ? "Unlike the structures that the model was taught: check it with the solver. " : "") +
      `Spread ${spread.toFixed(4)}: predictions for symmetric images deviate by that much (${this.judge.name})${usual}.`;
  }
}
