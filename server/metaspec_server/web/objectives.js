// Objectives: a number for spectra, and its derivative with respect to them, which is the cotangent of /gradient.

import { dot } from "./merits.js";

const SOFTNESS = 0.02;  // efficiency: how sharp the soft minimum is

// Objectives that the colours of a model allow, each { name, title, value(values), cotangent(values) }.
export function objectives(merits, colours) {
  const covered = [...merits.efficiency].filter(([, weight]) => weight);
  const weights = covered.map(([, weight]) => weight);
  const single = covered.map(([colour, weight]) =>
    linear(colour, `efficiency of ${colours[colour].name}`, weight));
  if (covered.length < 2) return single;
  const crosstalk = covered.map(([colour]) => merits.crosstalk.get(colour));
  return [
    { name: "smallest", title: "smallest efficiency", ...softMinimum(weights) },
    linear("mean", "mean efficiency", sum(weights.map((weight) => [1 / weights.length, weight]))),
    linear("crosstalk", "mean efficiency − crosstalk",
      sum([...weights.map((weight) => [1 / weights.length, weight]), ...crosstalk.map((weight) => [-1 / weights.length, weight])])),
    ...single,
  ];
}

function linear(name, title, weight) {
  return { name, title, value: (values) => dot(weight, values), cotangent: () => weight };
}

function sum(terms) {
  return terms[0][1].map((_, i) => terms.reduce((total, [factor, weight]) => total + factor * weight[i], 0));
}

// -s log(mean(exp(-efficiency / s))): exact where all are equal, and at most s log(3) above the smallest of three.
function softMinimum(weights) {
  const parts = (values) => {
    const efficiency = weights.map((weight) => dot(weight, values));
    const smallest = Math.min(...efficiency);
    return { smallest, shares: efficiency.map((one) => Math.exp((smallest - one) / SOFTNESS)) };
  };
  const total = (shares) => shares.reduce((a, b) => a + b, 0);
  return {
    value(values) {
      const { smallest, shares } = parts(values);
      return smallest - SOFTNESS * Math.log(total(shares) / shares.length);
    },
    cotangent(values) {
      const { shares } = parts(values);
      return sum(weights.map((weight, n) => [shares[n] / total(shares), weight]));
    },
  };
}
