// What is saved of a view: pictures (SVG, PNG) and all its numbers (CSV, npz).

import { h } from "./elements.js";
import { css, sizes, visitPositions } from "./maps.js";

const MAKERS = { svg: makeSVG, png: makePNG, csv: makeCSV, npz: makeNPZ };

/** Save what the explorer shows as a file of a kind. */
export async function save(explorer, kind) {
  const names = [explorer.layer.name, ...explorer.pictured.map(({ image }) => explorer.data.names[image])];
  const download = `${names.join("-").replace(/[^\w.-]+/g, "_").slice(0, 90)}.${kind}`;
  try {
    const href = URL.createObjectURL(await MAKERS[kind](explorer));
    h("a", { href, download }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
    explorer.tell(`Saved as ${download}`);
  } catch (error) {
    explorer.tell(`Cannot save: ${error.message}`, true);
  }
}

// -- pictures

function makeSVG({ root, data }) {
  return new Blob([svgOf(root, data.diverging)], { type: "image/svg+xml" });
}

async function makePNG({ root, data }) {
  const svg = encodeURIComponent(svgOf(root, data.diverging));
  const picture = h("img", { src: `data:image/svg+xml;charset=utf-8,${svg}` });
  await picture.decode();
  const canvas = h("canvas", { width: 2 * picture.naturalWidth, height: 2 * picture.naturalHeight });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

/** The view as it is seen, without its controls: pictures are embedded, maps are rectangles, text is text. */
function svgOf(root, colors) {
  root.classList.add("kv-still"); // how it looks when it is printed
  const { left, top, width, height } = root.getBoundingClientRect();
  const svg = svgElement("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const place = (at) => ({ x: at.left - left, y: at.top - top, width: at.width, height: at.height });
  for (const element of [root, ...root.querySelectorAll("*")]) {
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element), at = place(element.getBoundingClientRect());
    if (element.drawing) svg.append(svgMaps(element, at, colors));
    else if (element.matches("canvas")) {
      svg.append(svgElement("image", { ...at, href: element.toDataURL(), opacity: style.opacity }));
    } else if (element.matches("img")) svg.append(svgElement("image", { ...at, href: element.src }));
    else if (!style.backgroundColor.endsWith(" 0)")) {
      svg.append(svgElement("rect", { ...at, fill: style.backgroundColor }));
    }
    for (const text of [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE)) {
      svg.append(...linesOf(text).map((line) => svgLine(line.words, place(line.at), style)));
    }
  }
  root.classList.remove("kv-still");
  return new XMLSerializer().serializeToString(svg);
}

function svgElement(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function svgMaps(element, at, colors) {
  const { drawing } = element, { gap, width, height } = sizes(drawing), isLegend = element.matches(".kv-scale i");
  const transform = `translate(${at.x} ${at.y}) scale(${at.width / width} ${at.height / height})`;
  const group = svgElement("g", { transform });
  const square = (x, y, side, fill) => group.append(svgElement("rect", { x, y, width: side, height: side, fill }));
  visitPositions(drawing, colors, (color, left, top, strong) => {
    square(left, top, drawing.unit, css(color));
    if (strong && !isLegend) square(left + gap, top + gap, gap, "#000");
  });
  return group;
}

function svgLine(words, { x, y, height }, { fontSize, fontWeight, color }) {
  const font = { "font-family": "system-ui, sans-serif", "font-size": fontSize, "font-weight": fontWeight };
  return svgElement("text", { x, y: y + 0.8 * height, ...font, fill: color }, words);
}

/** The lines of a text as the browser has broken it: {words, at}. */
function linesOf(text) {
  const lines = [], range = document.createRange();
  for (const { 0: word, index } of text.data.matchAll(/\S+/g)) {
    range.setStart(text, index);
    range.setEnd(text, index + word.length);
    const at = range.getBoundingClientRect(), line = lines.at(-1);
    if (line && Math.abs(line.at.top - at.top) < 2) line.words += ` ${word}`;
    else lines.push({ words: word, at });
  }
  return lines;
}

// -- numbers

/** All numbers of the view: {of, image, quantity, method, layer, axes, shape, values}. */
function numbersOf({ data, layer, first, second, attribution, contribution }) {
  const { percent, scale } = attribution?.arrays ?? {};
  return [first, second].filter(Boolean).flatMap((who) => {
    const about = { of: who.name, image: data.names[who.image] };
    const cells = data.row(percent, who.image);
    const probabilities = data.row((who.outcome ?? data).arrays.probabilities, who.image);
    return [
      {
        ...about, quantity: "attention", layer: layer.name, axes: ["row", "column", "channel"],
        shape: [...layer.kernel, layer.channels], values: data.look(layer, who).maps,
      },
      { ...about, quantity: "probability", axes: ["class"], shape: [probabilities?.length], values: probabilities },
      {
        ...about, quantity: "attribution", method: attribution?.method, axes: ["row", "column"],
        shape: percent?.shape.slice(1),
        values: cells && Float32Array.from(cells, (code) => (code - 100) * scale.data[who.image] / 100),
      },
      {
        ...about, quantity: "contribution", method: contribution?.method, layer: layer.name, axes: ["row", "column"],
        shape: layer.kernel, values: data.row(contribution?.arrays[`values/${layer.name}`], who.image),
      },
    ].filter(({ values }) => values);
  });
}

const COLUMNS = ["of", "image", "quantity", "method", "layer", "row", "column", "channel", "class", "value"];

/** One line for each number. */
function makeCSV(explorer) {
  const { classes } = explorer.data;
  const quote = (word) => (/[",\n]/.test(word) ? `"${word.replace(/"/g, '""')}"` : word ?? "");
  const line = ({ axes, shape, values, ...about }, index) => {
    const entry = { ...about, value: String(Number(values[index].toPrecision(6))) };
    let rest = index;
    for (let axis = axes.length - 1; axis >= 0; axis -= 1) {
      entry[axes[axis]] = rest % shape[axis];
      rest = Math.floor(rest / shape[axis]);
    }
    if ("class" in entry) entry.class = classes[entry.class];
    return COLUMNS.map((name) => quote(entry[name])).join(",");
  };
  const lines = numbersOf(explorer).flatMap((array) => Array.from(array.values, (_, index) => line(array, index)));
  return new Blob([COLUMNS.join(","), "\n", lines.join("\n"), "\n"], { type: "text/csv" });
}

/** An array for each quantity of A ("_a"), of B ("_b") or of A before an intervention ("_before"). */
function makeNPZ(explorer) {
  const { layer, second, regions: { channels } } = explorer;
  const files = { channel_order: npy(Int32Array.from(channels.order()), [layer.channels]) };
  const endings = { A: "a", B: "b", "A before": "before" };
  for (const { of, quantity, shape, values } of numbersOf(explorer)) {
    files[`${quantity}_${endings[of]}`] = npy(values, shape);
  }
  if (second) files.difference = npy(channels.grids[2].maps, [...layer.kernel, layer.channels]);
  return zip(files);
}

const u16 = (...values) => new Uint8Array(Uint16Array.from(values).buffer);
const u32 = (...values) => new Uint8Array(Uint32Array.from(values).buffer);

/** A typed array as an .npy file. */
function npy(values, shape) {
  const type = values instanceof Int32Array ? "<i4" : "<f4";
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const head = `${text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11)}\n`;
  return new Blob([Uint8Array.of(0x93), "NUMPY", Uint8Array.of(1, 0), u16(head.length), head, values]);
}

/** A zip archive. The browser's gzip gives the compressed bytes, between 10 of its own and the checksum and size. */
async function zip(files) {
  const local = [], central = [];
  let offset = 0;
  for (const [name, content] of Object.entries(files)) {
    const title = new TextEncoder().encode(`${name}.npy`);
    const gzip = await new Response(content.stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
    const packed = new Uint8Array(gzip, 10, gzip.byteLength - 18);
    const [checksum, size] = new Uint32Array(gzip.slice(-8));
    // Version, flags, method (deflated), time, date (the first of January 1980); checksum, sizes; lengths of the names.
    const fields = [u16(20, 0, 8, 0, 0x21), u32(checksum, packed.length, size), u16(title.length, 0)];
    local.push(u32(0x04034b50), ...fields, title, packed);
    central.push(u32(0x02014b50), u16(20), ...fields, u16(0, 0, 0), u32(0, offset), title);
    offset += 30 + title.length + packed.length;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0), many = Object.keys(files).length;
  return new Blob([...local, ...central, u32(0x06054b50), u16(0, 0, many, many), u32(size, offset), u16(0)]);
}
