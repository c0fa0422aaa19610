// A dialog to choose one of several structures: of a file, or the designs of a run folder with what its report says of them.

import { $, make } from "./dom.js";
import { picture } from "./gallery.js";

const SHOWN = 200;  // pictures at most

// Resolves to the number that was chosen; null if the dialog was closed. `lines(number)` are lines below each picture.
export function choose(opened, pixels, heading, remarks, lines) {
  const dialog = $("chooser");
  $("chooser-title").textContent = heading;
  const more = opened.count > SHOWN ? [`The first ${SHOWN} of ${opened.count} are shown.`] : [];
  $("chooser-remarks").replaceChildren(...[...remarks, ...more].map((text) => make("p", {}, text)));
  return new Promise((resolve) => {
    const take = (number) => { dialog.close(); resolve(number); };
    $("choices").replaceChildren(...Array.from({ length: Math.min(opened.count, SHOWN) }, (_, number) =>
      make("button", { type: "button", onclick: () => take(number) }, picture(opened.structure(number), pixels),
        ...lines(number).map((text) => make("span", {}, text)))));
    dialog.onclose = () => resolve(null);
    dialog.showModal();
  });
}

const shown = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

// Remarks on a run, and lines for each of its designs.
export function ofRun({ facts, verified }) {
  const simulated = new Map((verified?.designs ?? []).map(({ rank, simulated: grids }) => {
    const cells = Math.max(...Object.keys(grids).map(Number));
    return [rank, `simulated ${shown(grids[cells].min_efficiency)} [${cells}]`];
  }));
  const source = facts.simulated ? `simulated by ${facts.model}` : `predicted by ${facts.model}`;
  return {
    remarks: [
      `Objective ${facts.objective}; ${source}, version ${facts.model_version}; ${facts.structures_evaluated} structures in ${facts.server_calls} calls.`,
      "For each design: its smallest efficiency, and the narrowest solid and void.",
    ],
    lines: (number) => {
      const { rank, predicted, solid_nm: solid, void_nm: empty } = facts.designs[number];
      return [`${String(rank).padStart(3, "0")}: ${shown(predicted.min_efficiency)}`, ...(simulated.has(rank) ? [simulated.get(rank)] : []),
        `${solid.toFixed(0)}, ${empty.toFixed(0)} nm`];
    },
  };
}
