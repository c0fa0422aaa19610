// What the page has, as files: structures as .npy, PNG and GDSII, spectra as CSV and PNG.

import { send } from "./api.js";
import { download, svg } from "./dom.js";
import { npyParts } from "./npy.js";
import { packed } from "./structure.js";

export function saveNpy(structure, pixels, name = "structure") {
  download(`${name}.npy`, npyParts(structure, [pixels, pixels]));
}

// White is solid, as where pictures are opened.
export async function savePicture(structure, pixels) {
  const canvas = new OffscreenCanvas(pixels, pixels), image = new ImageData(pixels, pixels);
  structure.forEach((value, i) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  download("structure.png", [await canvas.convertToBlob({ type: "image/png" })], "image/png");
}

export async function saveLayout(structure, model) {
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await send(`gdsii/write?model=${encodeURIComponent(model)}`, { method: "POST", headers, body: packed(structure) });
  download("structure.gds", [await answer.arrayBuffer()]);
}

export function saveTable({ values, wavelengths, channels }) {
  const rows = wavelengths.map((nm, w) => [nm, ...channels.map((_, channel) => values[channel * wavelengths.length + w])].join(","));
  download("spectra.csv", [["wavelength_nm", ...channels].join(",") + "\n", rows.join("\n") + "\n"], "text/csv");
}

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "text-anchor", "display"];

// The plot as it is shown, at twice its size, with the names of the channels above it.
export async function savePlot(root, channels, title) {
  const { width, height } = root.getBoundingClientRect(), above = 44;
  const copy = root.cloneNode(true);
  const originals = [...root.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((element, n) => {
    const style = getComputedStyle(originals[n]);
    for (const name of STYLES) element.setAttribute(name, style.getPropertyValue(name));
  });
  const ink = getComputedStyle(root).color, paper = getComputedStyle(root.closest(".card")).backgroundColor;
  const text = (x, y, content, fill = ink) => svg("text", { x, y, fill, "font-size": 13, "font-family": "system-ui, sans-serif" }, content);
  copy.setAttribute("viewBox", `0 ${-above} ${width} ${height + above}`);
  copy.setAttribute("width", 2 * width);
  copy.setAttribute("height", 2 * (height + above));
  copy.prepend(svg("rect", { x: 0, y: -above, width, height: height + above, fill: paper }));
  copy.append(text(14, -24, title));
  channels.forEach((name, n) => {
    const curve = root.querySelector(`.current.channel-${name}`);
    copy.append(text(52 + 60 * n, -4, name, getComputedStyle(curve).stroke));
  });
  const image = new Image();
  image.src = "data:image/svg+xml," + encodeURIComponent(new XMLSerializer().serializeToString(copy));
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").drawImage(image, 0, 0);
  download("spectra.png", [await canvas.convertToBlob({ type: "image/png" })], "image/png");
}
