// Density-based topology optimisation: from latents in [0, 1] to densities, and back along the gradient. All of it is periodic.
//
// A latent is smoothed by a conic filter (B. Bourdin, Int. J. Numer. Methods Eng. 50, 2143 (2001)), made symmetric, and pushed
// towards 0 and 1 by a tanh projection (F. Wang, B. S. Lazarov and O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011)).

import { wrap } from "./structure.js";

// The cone of a radius in pixels, as [row, column, weight]: 1 at the pixel, 0 at the radius, of sum 1.
function cone(radius) {
  const taps = [];
  for (let row = -Math.floor(radius); row <= radius; row++) {
    for (let column = -Math.floor(radius); column <= radius; column++) {
      const weight = 1 - Math.hypot(row, column) / radius;
      if (weight > 0) taps.push([row, column, weight]);
    }
  }
  const total = taps.reduce((sum, [, , weight]) => sum + weight, 0);
  return taps.map(([row, column, weight]) => [row, column, weight / total]);
}

export class Parameterisation {
  // The radius is in pixels; `symmetry` is "none" or "diagonal".
  constructor(pixels, radius, symmetry) {
    Object.assign(this, { pixels, symmetry, taps: cone(Math.max(radius, 1e-6)) });
    this.reach = Math.ceil(radius);
  }

  // Filter and symmetry: linear and self-adjoint.
  smooth(field) {
    const filtered = this.filter(field);
    return this.symmetry === "diagonal" ? this.symmetrised(filtered) : filtered;
  }

  filter(field) {
    const { pixels, reach, taps } = this, wide = pixels + 2 * reach;
    const padded = new Float32Array(wide * wide);
    for (let row = 0; row < wide; row++) {
      const from = wrap(row - reach, pixels) * pixels;
      for (let column = 0; column < wide; column++) padded[row * wide + column] = field[from + wrap(column - reach, pixels)];
    }
    const result = new Float32Array(pixels * pixels);
    for (const [down, right, weight] of taps) {
      for (let row = 0; row < pixels; row++) {
        let [to, from] = [row * pixels, (row + reach + down) * wide + reach + right];
        for (const end = to + pixels; to < end; to++, from++) result[to] += weight * padded[from];
      }
    }
    return result;
  }

  symmetrised(field) {
    const { pixels } = this;
    return field.map((value, i) => (value + field[(i % pixels) * pixels + Math.floor(i / pixels)]) / 2);
  }

  // Densities of a smoothed latent.
  project(smooth, beta) {
    const end = Math.tanh(beta / 2);
    return smooth.map((value) => Math.min(1, Math.max(0, (end + Math.tanh(beta * (value - 0.5))) / (2 * end))));
  }

  // The gradient with respect to the latent, of what has a gradient with respect to the density.
  pullBack(smooth, gradient, beta) {
    const end = Math.tanh(beta / 2);
    return this.smooth(gradient.map((value, i) => (value * beta * (1 - Math.tanh(beta * (smooth[i] - 0.5)) ** 2)) / (2 * end)));
  }

  binary(smooth) {
    return Uint8Array.from(smooth, (value) => (value > 0.5 ? 1 : 0));
  }

  // A latent that the filter turns back into a structure, as far as it can: projected gradients of what the filtered values lack
  // of the right side of 1/2.
  latent(structure, margin = 0.1, steps = 40) {
    let latent = Float32Array.from(structure);
    for (let step = 0; step < steps; step++) {
      const smooth = this.smooth(latent);
      const lack = smooth.map((value, i) => {
        const side = structure[i] ? 1 : -1;
        return side * Math.max(0, margin - side * (value - 0.5));
      });
      const move = this.smooth(lack);
      latent = latent.map((value, i) => Math.min(1, Math.max(0, value + move[i])));
    }
    return latent;
  }
}

// Steepness of the projection in each step: geometric from the first to the last, in stages in which it stays the same.
export function betaSchedule(steps, first = 4, last = 64, stages = 8) {
  return Array.from({ length: steps }, (_, step) => first * (last / first) ** (Math.floor((stages * step) / steps) / (stages - 1)));
}

// A smooth random start, strictly between 0 and 1, around a random level.
export function randomLatent(field) {
  const spread = Math.sqrt(field.reduce((sum, value) => sum + value * value, 0) / field.length);
  const level = 0.3 + 0.4 * Math.random();
  return Float32Array.from(field, (value) => 1 / (1 + Math.exp(-value / spread) * (1 / level - 1)));
}
