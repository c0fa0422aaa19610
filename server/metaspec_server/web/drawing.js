// Shapes as sets of pixels. Each calls `mark(row, column)` for every pixel of the shape; rows and columns may lie beyond the
// cell, which is periodic. Points are [y, x] in pixels: the middle of the first pixel is at [0.5, 0.5].

export function disc([y, x], width, mark) {
  const radius = Math.max(width, 1) / 2;
  mark(Math.floor(y), Math.floor(x));
  for (let row = Math.floor(y - radius); row <= y + radius; row++) {
    for (let column = Math.floor(x - radius); column <= x + radius; column++) {
      if ((row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2 <= radius ** 2) mark(row, column);
    }
  }
}

// A pen drawn from one point to another: however fast it went, it leaves no gaps.
export function stroke(from, to, width, mark) {
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let step = 0; step <= steps; step++) {
    disc(from.map((start, axis) => start + ((to[axis] - start) * step) / steps), width, mark);
  }
}

// The pixels between two corners, both included.
export function rectangle(a, b, mark) {
  const [low, high] = corners(a, b);
  for (let row = low[0]; row <= high[0]; row++) {
    for (let column = low[1]; column <= high[1]; column++) mark(row, column);
  }
}

// The ellipse in that rectangle.
export function ellipse(a, b, mark) {
  const [low, high] = corners(a, b);
  const [middle, half] = [0, 1].map((which) =>
    [0, 1].map((axis) => (which ? high[axis] + 1 - low[axis] : high[axis] + 1 + low[axis]) / 2));
  rectangle(a, b, (row, column) => {
    const [dy, dx] = [(row + 0.5 - middle[0]) / half[0], (column + 0.5 - middle[1]) / half[1]];
    if (dy * dy + dx * dx <= 1) mark(row, column);
  });
}

function corners(a, b) {
  const [first, second] = [a, b].map((point) => point.map(Math.floor));
  return [first.map((value, axis) => Math.min(value, second[axis])), first.map((value, axis) => Math.max(value, second[axis]))];
}

// The connected region of one material around a pixel, over the edges of the cell.
export function region(structure, pixels, [y, x], mark) {
  const inside = (at) => ((Math.floor(at) % pixels) + pixels) % pixels;
  const first = inside(y) * pixels + inside(x);
  const seen = new Uint8Array(structure.length);
  const waiting = [first];
  seen[first] = 1;
  while (waiting.length) {
    const at = waiting.pop();
    const [row, column] = [Math.floor(at / pixels), at % pixels];
    mark(row, column);
    for (const [r, c] of [[row - 1, column], [row + 1, column], [row, column - 1], [row, column + 1]]) {
      const next = inside(r) * pixels + inside(c);
      if (!seen[next] && structure[next] === structure[first]) {
        seen[next] = 1;
        waiting.push(next);
      }
    }
  }
}

// The end of a line at a multiple of 45 degrees, or of a square: nearest to where the pointer is.
export function constrained(from, to, tool) {
  const [dy, dx] = [to[0] - from[0], to[1] - from[1]];
  const longest = Math.max(Math.abs(dy), Math.abs(dx));
  if (tool === "line") {
    const [steep, flat] = [Math.abs(dy) > 2.4 * Math.abs(dx), Math.abs(dx) > 2.4 * Math.abs(dy)];
    return [from[0] + (flat ? 0 : Math.sign(dy) * longest), from[1] + (steep ? 0 : Math.sign(dx) * longest)];
  }
  return [from[0] + (Math.sign(dy) || 1) * longest, from[1] + (Math.sign(dx) || 1) * longest];
}

// The images of a pixel under the symmetry that drawing keeps.
const IMAGES = {
  none: () => [],
  diagonal: (row, column) => [[column, row]],
  columns: (row, column, last) => [[row, last - column]],
  rows: (row, column, last) => [[last - row, column]],
  both: (row, column, last) => [[row, last - column], [last - row, column], [last - row, last - column]],
};
export const images = (symmetry, row, column, pixels) => IMAGES[symmetry](row, column, pixels - 1);
