// The page of the jobs: follows the list as the service sends it, and joins the other modules.

import { $, make, send } from "./dom.js";
import { Form } from "./form.js";
import { numbers, Row } from "./row.js";

const AGAIN = 2e3;  // milliseconds between attempts to reach a service that is away

class Page {
  constructor() {
    Object.assign(this, { jobs: new Map(), rows: new Map(), groups: "", stream: null });
    this.form = new Form((job) => { this.say(`${job.name} waits`); });
    $("token-form").addEventListener("submit", (event) => { event.preventDefault(); this.logIn(); });
    // Not "close", which comes later: the dialog may be about another job by then.
    $("remove").addEventListener("submit", ({ submitter }) => {
      const name = $("remove-name").textContent;
      if (submitter.value === "remove") this.ask(name, `jobs/${name}`, "DELETE");
    });
  }

  async begin() {
    try {
      this.form.describe(await send("options"));
      this.away("");
      this.follow();
    } catch (error) {
      if (error.status === 401) {
        $("token-form").hidden = false;
        $("token").focus();
        return;
      }
      this.away(`${error.message} The list follows when it is back.`);
      setTimeout(() => this.begin(), AGAIN);
    }
  }

  async logIn() {
    try {
      await send("session", "POST", { token: $("token").value });
      $("token-form").hidden = true;
      $("token-problem").textContent = "";
      this.begin();
    } catch (error) {
      $("token-problem").textContent = error.message;
    }
  }

  follow() {
    this.stream = new EventSource("events");
    this.stream.addEventListener("jobs", (event) => { this.away(""); this.update(JSON.parse(event.data)); });
    this.stream.addEventListener("error", () => {
      this.away("The service does not answer. The list follows when it is back.");
      this.stream.close();
      setTimeout(() => this.begin(), AGAIN);
    });
  }

  away(text) {
    $("away").hidden = !text;
    $("away").textContent = text;
  }

  say(text) { $("said").textContent = text; }

  update({ order, jobs }) {
    for (const job of jobs) {
      const before = this.jobs.get(job.name);
      this.jobs.set(job.name, job);
      if (!this.rows.has(job.name)) this.rows.set(job.name, new Row(job.name, (action, name) => this.act(action, name)));
      this.rows.get(job.name).show(job);
      if (before && before.state !== job.state) this.say(`${job.name}: ${job.state}. ${numbers(job)}`);
    }
    for (const name of [...this.jobs.keys()]) {
      if (!order.includes(name)) { this.jobs.delete(name); this.rows.delete(name); }
    }
    this.arrange(order);
    $("none").hidden = order.length > 0;
    if (!order.length) $("new").open = true;
  }

  // A list for each objective, since values of different ones cannot be compared; then the jobs without a value.
  arrange(order) {
    const groups = new Map();
    for (const name of order) {
      const { rank, ranked_by: words } = this.jobs.get(name);
      const title = rank === null ? "Without a value yet" : `Ranked by ${words}`;
      groups.set(title, [...(groups.get(title) ?? []), name]);
    }
    const key = JSON.stringify([...groups]);
    if (key === this.groups) return;  // what has the focus stays
    this.groups = key;
    const focused = document.activeElement;
    $("lists").replaceChildren(...[...groups].map(([title, names]) => {
      const section = make("section", { className: "list" }, make("h2", {}, title), make("ol", {}, ...names.map((name) => this.rows.get(name).root)));
      section.setAttribute("aria-label", title);
      return section;
    }));
    if (focused?.isConnected) focused.focus();
  }

  act(action, name) {
    if (action !== "remove") { this.ask(name, `jobs/${name}/${action}`, "POST"); return; }
    $("remove-name").textContent = name;
    $("remove").showModal();
  }

  async ask(name, path, method) {
    try {
      await send(path, method);
    } catch (error) {
      const row = this.rows.get(name);
      if (row) row.message.textContent = error.message;
    }
  }
}

new Page().begin();
