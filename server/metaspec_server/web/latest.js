// One request at a time, and always for the newest state: what changes while it runs is asked for after it.

import { Away, comesBack } from "./api.js";

export class Latest {
  // `ask()` makes a request and returns what `arrived` takes; `state(name, error)` is told "computing", "current",
  // "failed" and "away"; after "away", when the server is back, `returned` is awaited.
  constructor({ ask, arrived, state, returned }) {
    Object.assign(this, { ask, arrived, state, returned, running: false, again: false, away: false });
  }

  async update() {
    if (!this.away) this.state("computing");
    this.again = true;
    if (this.running) return;
    this.running = true;
    while (this.again) {
      this.again = false;
      try {
        this.arrived(await this.ask());
        if (!this.again) this.state("current");
      } catch (error) {
        await this.recover(error);
      }
    }
    this.running = false;
  }

  async recover(error) {
    if (!(error instanceof Away)) {
      if (!this.again) this.state("failed", error);
      return;
    }
    this.away = true;
    this.state("away", error);
    await comesBack();
    this.away = false;
    this.again = true;
    await this.returned().catch(() => null);  // the request that follows meets the same error
    this.state("computing");
  }
}
