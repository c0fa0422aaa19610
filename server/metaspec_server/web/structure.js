// Structures in the page: a byte for each pixel, rows first, 1 is solid and 0 is void; periodic in both directions.

export const wrap = (at, pixels) => ((at % pixels) + pixels) % pixels;

// A structure whose pixel at (row, column) is that of another one at the place that `source` names.
function moved(structure, pixels, source) {
  const result = new Uint8Array(structure.length);
  for (let row = 0; row < pixels; row++) {
    for (let column = 0; column < pixels; column++) {
      const [r, c] = source(row, column);
      result[row * pixels + column] = structure[wrap(r, pixels) * pixels + wrap(c, pixels)];
    }
  }
  return result;
}

// Down and right by whole pixels; what leaves the cell comes in at the other side.
export const shifted = (structure, pixels, down, right) => moved(structure, pixels, (r, c) => [r - down, c - right]);
export const transposed = (structure, pixels) => moved(structure, pixels, (r, c) => [c, r]);
export const flippedRows = (structure, pixels) => moved(structure, pixels, (r, c) => [pixels - 1 - r, c]);
export const flippedColumns = (structure, pixels) => moved(structure, pixels, (r, c) => [r, pixels - 1 - c]);
export const inverted = (structure) => structure.map((value) => 1 - value);

// Its upper right half, mirrored at the diagonal onto the other one.
export const diagonal = (structure, pixels) => moved(structure, pixels, (r, c) => (c >= r ? [r, c] : [c, r]));

export function fillFactor(structure) {
  return structure.reduce((sum, value) => sum + value, 0) / structure.length;
}

// A sum of long waves, cut at its median: periodic, and without features too small to fabricate.
export function randomised(pixels, symmetric = false) {
  const field = waves(pixels);
  if (symmetric) {
    const plain = field.slice();
    for (let i = 0; i < field.length; i++) field[i] = plain[i] + plain[(i % pixels) * pixels + Math.floor(i / pixels)];
  }
  const middle = Float64Array.from(field).sort()[field.length / 2];
  return Uint8Array.from(field, (value) => (value > middle ? 1 : 0));
}

// A random periodic field of long waves.
export function waves(pixels) {
  const field = new Float64Array(pixels * pixels);
  for (let wave = 0; wave < 24; wave++) {
    const [u, v] = [0, 0].map(() => Math.round(8 * (Math.random() - 0.5)));
    const [phase, height] = [2 * Math.PI * Math.random(), Math.exp(-(u * u + v * v) / 12)];
    for (let i = 0; i < field.length; i++) {
      const [row, column] = [Math.floor(i / pixels), i % pixels];
      field[i] += height * Math.cos((2 * Math.PI * (u * row + v * column)) / pixels + phase);
    }
  }
  return field;
}

// Bits, row by row, the first pixel in the highest one: a body of /predict.
export function packed(structure) {
  const bits = new Uint8Array(Math.ceil(structure.length / 8));
  for (let i = 0; i < structure.length; i++) bits[i >> 3] |= structure[i] << (7 - (i & 7));
  return bits;
}

export function unpacked(bits, count) {
  return Uint8Array.from({ length: count }, (_, i) => (bits[i >> 3] >> (7 - (i & 7))) & 1);
}

// Area averages of a grid of any size over the pixels of a cell: the share of each pixel that is solid.
export function averaged(grid, rows, columns, pixels) {
  if (rows === pixels && columns === pixels) return Float32Array.from(grid);
  const [down, across] = [overlaps(rows, pixels), overlaps(columns, pixels)];
  const narrow = new Float64Array(rows * pixels);
  for (let row = 0; row < rows; row++) {
    across.forEach((parts, column) => {
      for (const [from, share] of parts) narrow[row * pixels + column] += share * grid[row * columns + from];
    });
  }
  const result = new Float32Array(pixels * pixels);
  down.forEach((parts, row) => {
    for (let column = 0; column < pixels; column++) {
      result[row * pixels + column] = parts.reduce((sum, [from, share]) => sum + share * narrow[from * pixels + column], 0);
    }
  });
  return result;
}

// For each of `pixels` equal intervals: the equal cells that it overlaps, with their shares.
function overlaps(cells, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const parts = [];
    for (let cell = Math.floor((pixel * cells) / pixels); cell * pixels < (pixel + 1) * cells; cell++) {
      const shared = Math.min((pixel + 1) * cells, (cell + 1) * pixels) - Math.max(pixel * cells, cell * pixels);
      if (shared > 0) parts.push([cell, shared / cells]);
    }
    return parts;
  });
}

export const thresholded = (density) => Uint8Array.from(density, (value) => (value > 0.5 ? 1 : 0));
