// The form of a new job. Its fields are the options of the commands, as the service describes them.

import { $, make, send } from "./dom.js";

const FIRST = ["folder", "objective", "steps", "starts", "optimiser", "radius_nm", "symmetry", "min_feature_nm", "seed", "best"];

export class Form {
  // `made(job)` is told the new job.
  constructor(made) {
    this.made = made;
    this.options = {};
    $("command").addEventListener("change", () => this.offer());
    $("form").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
  }

  describe(options) {
    this.options = options;
    $("command").replaceChildren(...Object.keys(options).map((name) => make("option", { value: name }, name)));
    this.offer();
  }

  get fields() { return this.options[$("command").value] ?? []; }

  offer() {
    const label = (field) => make("label", { title: field.help }, field.name.replaceAll("_", " "), this.input(field));
    $("settings").replaceChildren(...this.fields.filter(({ name }) => FIRST.includes(name)).map(label));
    $("more").replaceChildren(...this.fields.filter(({ name }) => !FIRST.includes(name)).map(label));
  }

  input({ name, kind, many, default: standard, required, choices, help }) {
    const shown = standard === null ? (required ? "required" : "") : String(standard);
    const common = { id: `setting-${name}`, name, ariaDescription: help };
    if (choices.length) {
      const options = [make("option", { value: "" }, `default${shown && `: ${shown}`}`), ...choices.map((one) => make("option", { value: one }, one))];
      return make("select", common, ...options);
    }
    if (kind === "bool") return make("input", { ...common, type: "checkbox" });
    const hint = kind === "file" ? "name in the folder" : "";
    if (many) return make("textarea", { ...common, rows: 2, placeholder: `${hint}${hint && ", "}one in each line` });
    const input = make("input", { ...common, autocomplete: "off", placeholder: shown || hint });
    if (kind === "int" || kind === "float") input.inputMode = "decimal";
    return input;
  }

  // What is given, as JSON: numbers where the text is one, so that the service says what else it expected.
  settings() {
    const found = {};
    for (const { name, kind, many } of this.fields) {
      const input = $(`setting-${name}`), text = input.value.trim();
      const value = (one) => (kind === "int" || kind === "float") && one !== "" && Number.isFinite(Number(one)) ? Number(one) : one;
      if (kind === "bool" && input.checked) found[name] = true;
      if (kind !== "bool" && text) found[name] = many ? text.split("\n").map((one) => one.trim()).filter(Boolean).map(value) : value(text);
    }
    return found;
  }

  async submit() {
    const name = $("name").value.trim();
    this.complain("");
    try {
      const job = await send("jobs", "POST", { command: $("command").value, ...(name && { name }), ...this.settings() });
      $("name").value = "";
      this.made(job);
    } catch (error) {
      this.complain(error.message, error.field);
    }
  }

  complain(text, field) {
    $("form-problem").textContent = text;
    for (const one of $("form").elements) one.setAttribute("aria-invalid", String(Boolean(text) && one.name !== "" && one.name === field));
    const wrong = $("form").querySelector("[aria-invalid=true]");
    const closed = wrong?.closest("details:not([open])");
    if (closed) closed.open = true;
    wrong?.focus();
  }
}
