// The conditions of the model in use, such as the distance of the detectors: a slider and a number for each of their values.

import { $, make } from "./dom.js";

const STEPS = 200;  // of a slider

const rounded = (value) => Number(value.toPrecision(6));  // a slider's positions are sums of its steps

export class Conditions {
  // `changed()` is called when a value is another one. The first values come from the address of the page.
  constructor(changed) {
    Object.assign(this, { changed, conditions: [], values: new Map() });
    for (const [name, text] of new URLSearchParams(location.search)) this.values.set(name, text.split(",").map(Number));
  }

  // The conditions of a model, from its parameters. Values that it can take stay as they are.
  offer({ conditions = [] }) {
    this.conditions = conditions;
    for (const one of conditions) {
      const { name, low, high, size } = one, found = this.values.get(name);
      const fits = found?.length === size && found.every((value) => value >= low && value <= high);
      if (!fits) this.values.set(name, [one.default].flat());
    }
    $("conditions").hidden = !conditions.length;
    $("conditions").replaceChildren($("conditions").firstElementChild, ...conditions.flatMap((one) =>
      this.values.get(one.name).map((_, component) => this.control(one, component))));
  }

  control({ name, unit, low, high, size }, component) {
    const values = this.values.get(name), title = titleOf(name, unit) + (size > 1 ? ` ${component + 1}` : "");
    const input = (type, step) => make("input", { type, min: low, max: high, step, value: values[component], ariaLabel: title });
    const slider = input("range", (high - low) / STEPS), number = input("number", "any");
    number.required = true;
    const set = (value) => {
      values[component] = value;
      slider.value = number.value = value;
      this.changed();
    };
    slider.addEventListener("input", () => set(rounded(slider.valueAsNumber)));
    number.addEventListener("change", () => { if (number.reportValidity()) set(number.valueAsNumber); });
    return make("label", {}, `${title} `, slider, " ", number, unit && ` ${unit}`);
  }

  // What a request to a model says: its name, and the values of those conditions that it takes.
  query({ name, parameters }) {
    const query = new URLSearchParams({ model: name });
    for (const one of parameters.conditions ?? []) if (this.values.has(one.name)) query.set(one.name, this.values.get(one.name).join());
    return query.toString();
  }

  // The values in words, for what is shown and saved.
  get text() {
    return this.conditions.map(({ name, unit }) => `, ${titleOf(name, unit)} ${this.values.get(name).join(", ")}${unit && ` ${unit}`}`).join("");
  }

  // Stops changes while a run goes on.
  lock(locked) { $("conditions").disabled = locked; }
}

const titleOf = (name, unit) => (unit && name.endsWith(`_${unit}`) ? name.slice(0, -unit.length - 1) : name).replaceAll("_", " ");
