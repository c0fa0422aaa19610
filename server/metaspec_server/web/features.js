// Widths of features in a periodic structure, in pixels, and repair of those that are too narrow. The rule is that of the package
// imageruler (M. Chen et al., J. Opt. Soc. Am. B 41, A161 (2024)): discs paint the material, and single pixels at the edges of
// large features do not count.

import { inverted, wrap } from "./structure.js";
import { Parameterisation } from "./topology.js";

const LARGER = 10;  // diameters that are tried: pixelated discs are not nested
const PLUS = [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]];
const SQUARE = [-1, 0, 1].flatMap((row) => [-1, 0, 1].map((column) => [row, column]));
const NEAR = [-2, -1, 0, 1, 2].flatMap((row) => [-2, -1, 0, 1, 2].map((column) => [row, column]))
  .filter(([row, column]) => Math.abs(row * column) < 4);
const AROUND = 1e-6, ABOVE = 0.5 + 1e-5;  // beyond the rounding of the filter

// The pixels of a disc; from three pixels on, only those that a cross of three can paint.
function disc(diameter) {
  const inside = (row, column) => row >= 0 && column >= 0 && row < diameter && column < diameter &&
    (row + 0.5 - diameter / 2) ** 2 + (column + 0.5 - diameter / 2) ** 2 < (diameter / 2) ** 2;
  const painted = (row, column) => PLUS.some(([dy, dx]) => PLUS.every(([y, x]) => inside(row + dy + y, column + dx + x)));
  const pixels = [];
  for (let row = 0; row < diameter; row++) {
    for (let column = 0; column < diameter; column++) {
      if (diameter > 2 ? painted(row, column) : inside(row, column)) pixels.push([row, column]);
    }
  }
  return pixels;
}

// What a set of offsets can paint without leaving the solid.
function opened(solid, pixels, offsets) {
  const result = new Uint8Array(solid.length);
  for (let row = 0; row < pixels; row++) {
    for (let column = 0; column < pixels; column++) {
      const at = ([dy, dx]) => wrap(row + dy, pixels) * pixels + wrap(column + dx, pixels);
      if (offsets.every((offset) => solid[at(offset)])) for (const offset of offsets) result[at(offset)] = 1;
    }
  }
  return result;
}

// Pixels on straight edges and outer corners of features that have an interior.
function edges(solid, pixels) {
  const at = (row, column) => wrap(row, pixels) * pixels + wrap(column, pixels);
  const interior = new Uint8Array(solid.length), beside = new Uint8Array(solid.length), result = new Uint8Array(solid.length);
  const each = (action) => { for (let row = 0; row < pixels; row++) for (let column = 0; column < pixels; column++) action(row, column); };
  each((row, column) => { interior[at(row, column)] = SQUARE.every(([y, x]) => solid[at(row + y, column + x)]) ? 1 : 0; });
  each((row, column) => {
    if (interior[at(row, column)]) for (const [y, x] of NEAR) beside[at(row + y, column + x)] = 1;
  });
  each((row, column) => {
    const here = at(row, column);
    if (!solid[here] || !beside[here] || interior[here]) return;
    const empty = (dy, dx) => !solid[at(row + dy, column + dx)];
    const straight = [[-1, 0], [1, 0], [0, -1], [0, 1]].some(([dy, dx]) =>
      empty(dy, dx) && empty(dy + dx, dx + dy) && empty(dy - dx, dx - dy));
    const corner = [[-1, -1], [-1, 1], [1, -1], [1, 1]].some(([dy, dx]) => empty(dy, 0) && empty(0, dx) && empty(dy, dx));
    result[here] = straight || corner ? 1 : 0;
  });
  return result;
}

// Pixels of the solid that belong to features narrower than a width; null if there are none.
function narrow(solid, pixels, width) {
  const ignored = edges(solid, pixels);
  let violations = solid.map((value, i) => value & (1 - ignored[i]));
  for (let diameter = width; diameter < width + LARGER; diameter++) {
    if (!violations.some(Boolean)) return null;
    const painted = opened(solid, pixels, disc(diameter));
    violations = violations.map((value, i) => value & (1 - painted[i]));
  }
  return violations.some(Boolean) ? violations : null;
}

// Width of the narrowest solid, and of the narrowest void, in pixels; at most `most`.
export function narrowest(structure, pixels, most = 24) {
  return [structure, inverted(structure)].map((solid) => {
    let width = 1;
    while (width < most && !narrow(solid, pixels, width + 1)) width += 1;
    return width;
  });
}

// A structure whose solid and void are at least that wide: around what is too narrow it is smoothed and cut at 1/2, with a growing
// radius, until nothing is too narrow. With many features and a large width it can end as all solid or all void.
export function mended(structure, pixels, width, symmetry = "none") {
  let solid = structure;
  for (let radius = 0.75 * width; radius < pixels / 2; radius += 0.25) {
    const found = [narrow(solid, pixels, width), narrow(inverted(solid), pixels, width)].filter(Boolean);
    if (!found.length) return solid;
    const filter = new Parameterisation(pixels, radius, symmetry);
    const around = filter.smooth(solid.map((_, i) => (found.some((violations) => violations[i]) ? 1 : 0)));
    const smooth = filter.smooth(solid);
    solid = solid.map((value, i) => (around[i] > AROUND ? (smooth[i] > ABOVE ? 1 : 0) : value));
  }
  return solid.map(() => (2 * solid.reduce((sum, value) => sum + value, 0) > solid.length ? 1 : 0));
}
