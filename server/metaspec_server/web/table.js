// The table of figures of merit: a column for each colour, and one for the smallest efficiency.

import { $, make } from "./dom.js";

const text = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");  // not finite: no wavelength in the band

export class Table {
  constructor({ colours }) {
    const names = [...Object.values(colours).map(({ name }) => name), "smallest"];
    $("colours").append(...names.map((name) => make("th", { scope: "col" }, name)));
    for (const row of ["efficiency", "pinned", "crosstalk"]) $(row).append(...names.map(() => make("td")));
    $("efficiency").lastChild.className = "smallest";
  }

  fill(row, values) { [...$(row).querySelectorAll("td")].forEach((cell, n) => { cell.textContent = text(values[n]); }); }

  show({ efficiency, crosstalk, smallest }) {
    this.fill("efficiency", [...efficiency, smallest]);
    this.fill("crosstalk", crosstalk);
    $("crosstalk").lastChild.textContent = "";
  }

  pin(merits) {
    $("pinned").hidden = merits === null;
    if (merits) this.fill("pinned", [...merits.efficiency, merits.smallest]);
  }
}
