// Designs to start from, which come with the server, and pictures of structures.

import { colour, make } from "./dom.js";
import { json } from "./api.js";
import { unpacked } from "./structure.js";

// A picture of a structure, a pixel for each pixel, in the colours of the drawing.
export function picture(structure, pixels) {
  const canvas = make("canvas", { width: pixels, height: pixels });
  const [solid, empty] = [colour("--solid"), colour("--void")];
  const image = new ImageData(pixels, pixels);
  structure.forEach((value, i) => {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = empty[c] + value * (solid[c] - empty[c]);
    image.data[4 * i + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Calls an action now, and whenever the page turns from light to dark or back.
export function onScheme(action) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", action);
  action();
}

// Fills the gallery with buttons. The designs are those of the default device.
export async function showGallery(root, pixels, chosen) {
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const designs = (await json("static/gallery/designs.json")).map(({ name, caption, packed }) =>
    ({ name, caption, structure: unpacked(bytes(packed), pixels * pixels) }));
  onScheme(() => root.replaceChildren(...designs.map(({ name, caption, structure }) =>
    make("button", { type: "button", title: `Open ${name}`, ariaLabel: `Open the design ${name}, ${caption}`, onclick: () => chosen(structure.slice(), name) },
      picture(structure, pixels), caption))));
}
