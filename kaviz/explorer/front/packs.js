// Packs (kaviz/explorer/views.py says what is in them), and sums over their numbers.
// Maps are (positions, channels), position by position.

export async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(raw.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, start)));
  for (const array of Object.values(header.arrays)) array.data = valuesOf(array, raw, start + array.offset);
  return header;
}

function valuesOf({ dtype, shape, low, step }, raw, start) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (dtype === "float32") return new Float32Array(raw.buffer, start, count);
  const codes = raw.subarray(start, start + count);
  if (dtype === "uint8") return codes;
  const highs = dtype === "code16" ? raw.subarray(start + count, start + 2 * count) : null;
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 1) values[i] = low + step * (highs ? codes[i] | (highs[i] << 8) : codes[i]);
  return values;
}

/** All that the packs hold, and what follows from it by sums. */
export class Data {
  constructor(packs) {
    const of = (kind) => packs.filter((pack) => pack.kind === kind);
    // The view's: title, layers, names, about, pictures, labels, right, predictions, classes, arrays.
    Object.assign(this, of("view")[0]);
    this.outcomes = of("outcome");
    this.attributions = of("attribution");
    this.contributions = of("positions");
    for (const layer of this.layers) layer.positions = layer.kernel[0] * layer.kernel[1];
    this.known = [...new Set(this.labels)].filter((label) => label >= 0).sort((x, y) => x - y);
    const colors = ({ data: { buffer, byteOffset } }) => new Uint32Array(buffer, byteOffset, 256);
    this.sequential = colors(this.arrays.sequential);
    this.diverging = colors(this.arrays.diverging);
    this.looks = new Map();
  }

  /** The maps of an image in a layer, their mean (positions), and each channel's entropy relative to the even map's. */
  look(layer, { image, outcome }) {
    const key = `${layer.name} ${image} ${outcome?.name}`;
    if (!this.looks.has(key)) this.looks.set(key, this.measure(layer, image, outcome ?? this));
    return this.looks.get(key);
  }

  measure({ name, channels, positions }, image, { arrays }) {
    const { shape, data } = arrays[`attention/${name}`];
    const first = shape[0] === 1 ? 0 : image * positions * channels; // one for all images
    const maps = data.subarray(first, first + positions * channels);
    const mean = new Float32Array(positions);
    const entropies = new Float32Array(channels).fill(positions === 1 ? 1 : 0);
    const unit = Math.log(positions) || 1;
    for (let p = 0, index = 0; p < positions; p += 1) {
      for (let c = 0; c < channels; c += 1, index += 1) {
        mean[p] += maps[index] / channels;
        if (maps[index] > 0) entropies[c] -= maps[index] * Math.log(maps[index]) / unit;
      }
    }
    return { maps, mean, entropies, entropy: entropies.reduce((sum, value) => sum + value / channels, 0) };
  }

  /** An image's row of an array whose first axis is the images; undefined if there is no such array, or no row. */
  row(array, image) {
    const size = array?.data.length / array?.shape[0];
    return image < array?.shape[0] ? array.data.subarray(image * size, (image + 1) * size) : undefined;
  }
}

/** The map of one channel out of those of a layer. */
export function pick({ positions, channels }, maps, channel) {
  return Float32Array.from({ length: positions }, (_, p) => maps[p * channels + channel]);
}

/** Total variation distance between two maps, channel by channel. */
export function distances({ channels }, a, b) {
  const sums = new Float32Array(channels);
  a.forEach((value, index) => { sums[index % channels] += Math.abs(value - b[index]) / 2; });
  return sums;
}

export function correlation(x, y) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [a, b] = [mean(x), mean(y)];
  const sum = (f) => x.reduce((total, _, i) => total + f(x[i] - a, y[i] - b), 0);
  return sum((u, v) => u * v) / (Math.sqrt(sum((u) => u * u) * sum((_, v) => v * v)) || 1);
}
