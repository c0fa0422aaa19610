// A structure in the address of the page: its bits, compressed, after "#structure=".

import { packed, unpacked } from "./structure.js";

const FIELD = "structure";

async function through(stream, bytes) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

export async function fragmentOf(structure) {
  const bytes = await through(new CompressionStream("deflate-raw"), packed(structure));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `#${FIELD}=${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

// The structure in an address, of a cell of that many pixels; null if there is none.
export async function structureOf(fragment, pixels) {
  const text = new URLSearchParams(fragment.slice(1)).get(FIELD);
  if (!text) return null;
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
    const bits = await through(new DecompressionStream("deflate-raw"), bytes);
    if (bits.length === Math.ceil(pixels ** 2 / 8)) return unpacked(bits, pixels ** 2);
  } catch {
    // said below: a link that was cut is as wrong as one of another size
  }
  throw new Error(`the address holds no structure of ${pixels} by ${pixels} pixels: the link may have been cut`);
}

// The page of `metaspec jobs` that an address was opened from; null if it was not.
export function jobsOf(fragment) {
  const text = new URLSearchParams(fragment.slice(1)).get("jobs") ?? "";
  return /^https?:/.test(text) && URL.canParse(text) ? new URL(text) : null;
}
