// Files of NumPy arrays, read and written: the format of numpy.lib.format, versions 1 to 3, with numbers of every kind.

const MAGIC = [0x93, ...[..."NUMPY"].map((character) => character.charCodeAt(0))];
const READERS = {
  b1: [1, (view, at) => view.getUint8(at)], u1: [1, (view, at) => view.getUint8(at)], i1: [1, (view, at) => view.getInt8(at)],
  u2: [2, (view, at, little) => view.getUint16(at, little)], i2: [2, (view, at, little) => view.getInt16(at, little)],
  u4: [4, (view, at, little) => view.getUint32(at, little)], i4: [4, (view, at, little) => view.getInt32(at, little)],
  u8: [8, (view, at, little) => Number(view.getBigUint64(at, little))], i8: [8, (view, at, little) => Number(view.getBigInt64(at, little))],
  f2: [2, (view, at, little) => half(view.getUint16(at, little))], f4: [4, (view, at, little) => view.getFloat32(at, little)],
  f8: [8, (view, at, little) => view.getFloat64(at, little)],
};

function half(bits) {
  const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 0x1f, bits & 0x3ff];
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Shape and values of an array, the last axis fastest. Throws an Error that says what is wrong.
export function readNpy(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer);
  if (!MAGIC.every((byte, at) => bytes[at] === byte)) throw new Error("it does not begin as a .npy file");
  const wide = bytes[6] > 1;
  const start = wide ? 12 : 10, size = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const head = new TextDecoder("latin1").decode(bytes.subarray(start, start + size));
  const found = (name, pattern) => head.match(new RegExp(`['"]${name}['"]\\s*:\\s*${pattern}`))?.[1];
  const descr = found("descr", "['\"]([^'\"]*)['\"]"), fortran = found("fortran_order", "(True|False)"), sides = found("shape", "\\(([\\d,\\sL]*)\\)");
  if (descr === undefined || fortran === undefined || sides === undefined) throw new Error("its head names no dtype and shape of numbers");
  const reader = READERS[descr.replace(/^[<>|=]/, "")];
  if (!reader) throw new Error(`expected numbers or booleans, got the dtype ${descr}`);
  const shape = sides.split(",").filter((part) => part.trim()).map((part) => parseInt(part, 10));
  const count = shape.reduce((product, side) => product * side, 1), [width, read] = reader;
  if (bytes.length - start - size !== count * width) {
    throw new Error(`expected ${count * width} bytes of data for the shape (${shape.join(", ")}), got ${bytes.length - start - size}`);
  }
  const little = !descr.startsWith(">");
  const values = Float64Array.from({ length: count }, (_, i) => read(view, start + size + i * width, little));
  return { shape, values: fortran === "True" ? turned(values, shape) : values };
}

// The values of an array whose first axis is fastest, in the order of the last one.
function turned(values, shape) {
  const result = new Float64Array(values.length), index = shape.map(() => 0);
  const steps = shape.map((_, axis) => shape.slice(0, axis).reduce((product, side) => product * side, 1));
  for (let i = 0; i < result.length; i++) {
    result[i] = values[index.reduce((at, place, axis) => at + place * steps[axis], 0)];
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis] === shape[axis]; axis--) index[axis] = 0;
  }
  return result;
}

// The parts of a file: a head, and the bytes of a typed array, which is little-endian in every browser.
export function npyParts(array, shape) {
  const descr = { Uint8Array: "|u1", Float32Array: "<f4", Float64Array: "<f8" }[array.constructor.name];
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  const length = 64 * Math.ceil((10 + text.length + 1) / 64);
  const head = new TextEncoder().encode(text.padEnd(length - 11) + "\n");
  return [new Uint8Array([...MAGIC, 1, 0, head.length & 0xff, head.length >> 8]), head, array];
}

// Arrays as one body of bytes: .npy files, one after the other.
export async function npyBody(...arrays) {
  return new Blob(arrays.flatMap(([array, shape]) => npyParts(array, shape))).arrayBuffer();
}
