// Structures from files: .npy of any numbers, PNG, GDSII by the server, and run folders of `metaspec optimise`.

import { send } from "./api.js";
import { readNpy } from "./npy.js";
import { averaged, thresholded } from "./structure.js";

const ROUNDING = 1e-6;  // largest excursion from [0, 1] that counts as rounding
const [FEWEST, MOST] = [8, 16384];  // pixels along a side of what is opened
const LAYOUT = /\.(gds|gds2|gdsii)$/i;

// The structures of a file: { name, count, structure(number), remark }. `pixels` is the size of a cell, `model` a model of the device.
export async function openFile(file, pixels, model) {
  try {
    if (/\.npy$/i.test(file.name)) return ofGrids(file.name, gridsOf(readNpy(await file.arrayBuffer())), pixels);
    if (/\.png$/i.test(file.name)) return ofGrids(file.name, await gridOfPicture(file), pixels);
    if (LAYOUT.test(file.name)) return ofGrids(file.name, gridsOf(await readLayout(file, model)), pixels);
  } catch (error) {
    error.message = `${file.name}: ${error.message}`;
    throw error;
  }
  throw new Error(`${file.name}: the name must end in .npy, .png, .gds, .gds2 or .gdsii`);
}

async function readLayout(file, model) {
  const headers = { "Content-Type": "application/octet-stream" };
  const path = `gdsii/read?model=${encodeURIComponent(model)}`;
  return readNpy(await (await send(path, { method: "POST", headers, body: await file.arrayBuffer() })).arrayBuffer());
}

// Checked grids (count, side, side) of an array (rows, columns), (N, rows, columns) or (N, 1, rows, columns).
function gridsOf({ shape, values }) {
  const sides = shape.length === 4 && shape[1] === 1 ? [shape[0], ...shape.slice(2)] : shape;
  const [count, rows, columns] = sides.length === 2 ? [1, ...sides] : sides;
  if (sides.length < 2 || sides.length > 3 || rows !== columns || !count) {
    throw new Error(`structures must be square, (rows, columns) or (N, rows, columns), got (${shape.join(", ")})`);
  }
  if (rows < FEWEST || rows > MOST) throw new Error(`structures must have ${FEWEST} to ${MOST} pixels along a side, got ${rows}`);
  const wrong = values.findIndex((value) => !(value >= -ROUNDING && value <= 1 + ROUNDING));
  if (wrong >= 0) {
    const place = `structure ${Math.floor(wrong / rows ** 2)}, row ${Math.floor(wrong / rows) % rows}, column ${wrong % rows}`;
    const hint = values.reduce((a, b) => Math.max(a, b)) === 255 ? "; divide 8-bit images by 255" : "";
    throw new Error(`structures must lie between 0 (void) and 1 (solid), got ${values[wrong]} at ${place}${hint}`);
  }
  return { count, side: rows, values };
}

// White is solid, and black is void.
async function gridOfPicture(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).catch(() => {
    throw new Error("it is not a picture that can be read");
  });
  const { width, height } = bitmap;
  if (Math.max(width, height) > MOST / 4) throw new Error(`the picture must have at most ${MOST / 4} pixels along a side, got ${width} x ${height}`);
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Float64Array(width * height);
  for (let i = 0; i < values.length; i++) {
    const [shade, second, third, opacity] = data.subarray(4 * i, 4 * i + 4);
    if (opacity < 255) throw new Error("the picture must have no transparent pixels");
    if (shade !== second || shade !== third) throw new Error("the picture must be in shades of grey, white for solid, got colours");
    values[i] = shade / 255;
  }
  return gridsOf({ shape: [height, width], values });
}

function ofGrids(name, { count, side, values }, pixels) {
  const density = (number) => averaged(values.subarray(number * side * side, (number + 1) * side * side), side, side, pixels);
  return { name, count, structure: (number) => thresholded(density(number)), remark: (number) => remark(density(number), side, pixels) };
}

// What opening has changed, in words.
function remark(density, side, pixels) {
  const between = density.reduce((sum, value) => sum + (value > ROUNDING && value < 1 - ROUNDING), 0);
  const parts = side === pixels ? [] : [`${side} x ${side} pixels averaged to ${pixels} x ${pixels}`];
  if (between) parts.push(`${between} pixels were neither solid nor void: thresholded at 1/2`);
  return parts.join("; ");
}

// The designs of a run folder: its report, and their structures.
export async function openFolder(files, pixels) {
  const depth = (file) => file.webkitRelativePath.split("/").length;
  const inside = [...files].sort((a, b) => depth(a) - depth(b));
  const report = inside.find(({ name }) => name === "report.json");
  if (!report) throw new Error("the folder has no report.json: choose one that `metaspec optimise` has finished");
  const beside = (name) => inside.find((file) => file.name === name && depth(file) === depth(report));
  const designs = beside("designs.npy");
  if (!designs) throw new Error("the folder has a report.json, but no designs.npy");
  const facts = JSON.parse(await report.text());
  const verified = beside("verify.json") ? JSON.parse(await beside("verify.json").text()) : null;
  const opened = await openFile(designs, pixels, "");
  if (opened.count !== facts.designs.length) {
    throw new Error(`report.json lists ${facts.designs.length} designs, but designs.npy holds ${opened.count}`);
  }
  return { ...opened, name: report.webkitRelativePath.split("/").at(-2), facts, verified };
}
