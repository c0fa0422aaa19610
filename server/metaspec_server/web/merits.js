// Figures of merit of spectra: linear, so each is a weight for every channel and wavelength.

export const dot = (weights, values, offset = 0) => weights.reduce((sum, weight, i) => sum + weight * values[offset + i], 0);

// Weights of the mean, over wavelengths, of the sum of channels; null where no wavelength is inside.
function weights({ wavelengths, channels }, names, inside) {
  const chosen = [...wavelengths.keys()].filter((w) => inside(wavelengths[w]));
  if (!chosen.length) return null;
  const result = new Float64Array(channels.length * wavelengths.length);
  for (const name of names) {
    for (const w of chosen) result[channels.indexOf(name) * wavelengths.length + w] = 1 / chosen.length;
  }
  return result;
}

export class Merits {
  // `colours` are those of the server's contract; `spread` is its name of the channel.
  constructor({ colours, spread }, axes) {
    const within = ({ band_nm: [low, high] }, nm) => nm >= low && nm < high;
    const facts = Object.entries(colours);
    this.efficiency = new Map(facts.map(([name, own]) => [name, weights(axes, own.detectors, (nm) => within(own, nm))]));
    this.crosstalk = new Map(facts.map(([name, own]) =>
      [name, weights(axes, own.detectors, (nm) => facts.some(([, other]) => other !== own && within(other, nm)))]));
    this.spread = axes.channels.includes(spread) ? weights(axes, [spread], () => true) : null;
  }

  get covered() { return [...this.efficiency.values()].filter((weight) => weight); }

  // Efficiency and crosstalk of each colour, the smallest efficiency, and the mean spread of spectra; NaN or null for none.
  of(values) {
    const all = (kind) => [...kind.values()].map((weight) => (weight ? dot(weight, values) : NaN));
    const [efficiency, crosstalk] = [all(this.efficiency), all(this.crosstalk)];
    const finite = efficiency.filter(Number.isFinite);
    const smallest = finite.length ? Math.min(...finite) : NaN;
    return { efficiency, crosstalk, smallest, spread: this.spread && dot(this.spread, values) };
  }
}
