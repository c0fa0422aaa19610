// The objective over the steps: of the densities, and of the best binary structure so far.

import { svg } from "./dom.js";

const WIDTH = 240, HEIGHT = 72;

// Draws points [step, value, best] of a run of that many steps; returns what the picture shows, in words.
export function draw(root, points, steps) {
  root.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  root.setAttribute("preserveAspectRatio", "none");
  const values = points.flatMap(([, value, best]) => [value, best]).filter((value) => value !== null);
  if (!values.length) {
    root.replaceChildren();
    return "no step yet";
  }
  const low = Math.min(...values), high = Math.max(...values, low + 1e-6), last = Math.max(steps ?? 1, points.at(-1)[0]);
  const x = (step) => 2 + ((WIDTH - 4) * step) / last, y = (value) => HEIGHT - 4 - ((HEIGHT - 8) * (value - low)) / (high - low);
  const path = (column, name) => {
    const known = points.filter((point) => point[column] !== null);
    const d = known.map((point) => `${x(point[0]).toFixed(1)},${y(point[column]).toFixed(1)}`).join("L");
    return svg("path", { class: name, d: d && `M${d}` });
  };
  root.replaceChildren(svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }), path(1, "of-density"), path(2, "of-binary"));
  return `objective from ${low.toFixed(3)} to ${high.toFixed(3)} in ${points.at(-1)[0]} steps`;
}
