// One job of the list: its state, its numbers, its curve, and what can be done with it.

import { draw } from "./curve.js";
import { make, svg } from "./dom.js";

const ACTIONS = { waiting: ["pause", "remove"], running: ["pause"], pausing: ["resume"], paused: ["resume", "remove"],
  finished: ["remove"], failed: ["resume", "remove"] };
const TITLES = { pause: "Pause", resume: "Resume", remove: "Remove" };

export class Row {
  // `act(action, name)` is called by the buttons.
  constructor(name, act) {
    this.rank = make("span", { className: "rank" });
    this.state = make("span", { className: "state" });
    this.numbers = make("p", { className: "numbers" });
    this.settings = make("p", { className: "settings-of" });
    this.message = make("p", { className: "problem" });
    this.links = make("span", { className: "row" });
    this.curve = svg("svg", { class: "curve", role: "img" });
    this.buttons = Object.fromEntries(Object.entries(TITLES).map(([action, title]) => {
      const button = make("button", { type: "button", hidden: true, onclick: () => act(action, name) }, title);
      button.setAttribute("aria-label", `${title} ${name}`);
      return [action, button];
    }));
    const head = make("h3", {}, this.rank, name, this.state);
    const text = make("div", {}, head, this.numbers, this.settings, this.message);
    this.root = make("li", { className: "card job" }, text, this.curve, make("div", { className: "row" }, ...Object.values(this.buttons), this.links));
  }

  show(job) {
    const { root } = this;
    root.dataset.state = job.state;
    this.rank.textContent = job.rank === null ? "" : `${job.rank}.`;
    this.state.textContent = job.queue === null ? job.state : `${job.state}, ${job.queue} in the queue`;
    this.numbers.textContent = numbers(job);
    this.settings.textContent = job.command === null ? "not started here" : [job.command, ...Object.entries(job.settings ?? {})
      .map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`)].join(", ");
    this.message.textContent = job.message ?? "";
    for (const [action, button] of Object.entries(this.buttons)) {
      button.hidden = job.command === null || !ACTIONS[job.state].includes(action);
    }
    this.curve.setAttribute("aria-label", `${job.name}: ${draw(this.curve, job.curve, job.steps)}`);
    this.showLinks(job);
  }

  showLinks({ name, files, studio }) {
    const links = files.map((file) => [file.replace("job.log", "log"), `jobs/${name}/${file}`]);
    if (studio) links.push(["studio", `${studio}&jobs=${encodeURIComponent(location.href.split(/[?#]/)[0])}`]);
    const key = JSON.stringify(links);
    if (this.shown === key) return;  // what has the focus stays
    this.shown = key;
    this.links.replaceChildren(...links.map(([title, href]) => {
      const link = make("a", { href }, title);
      link.setAttribute("aria-label", `${title} of ${name}`);
      return link;
    }));
  }
}

export function numbers({ objective, verified, min_efficiency: efficiency, cells, step, steps }) {
  const parts = [];
  if (steps !== null) parts.push(`step ${step} of ${steps}`);
  if (objective !== null) parts.push(`objective ${objective.toFixed(4)}`);
  if (efficiency !== null) parts.push(`min efficiency ${efficiency.toFixed(3)}`);
  if (verified) parts.push(cells === null ? "simulated" : `simulated, ${cells} cells`);
  return parts.join(" · ");
}
