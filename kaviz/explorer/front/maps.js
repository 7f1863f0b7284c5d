// Maps as they are drawn: their sizes and colours, on a canvas or behind an element, and the legend beside them.
//
// A drawing is {kernel, maps, columns, unit, low, high}: maps beside and below each other, a position `unit` pixels
// wide, colours from `low` to `high`. It is kept at its element, for who points at it or saves it.

import { h } from "./elements.js";

/** Widths of a position are multiples of it: a third stands between maps, and is the width of a dot. */
export const STEP = 3;

export const css = (color) => `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;

/** The number of a value's colour, out of 256. */
export const shade = (value, { low, high }) =>
  Math.max(0, Math.min(255, Math.round(255 * (value - low) / (high - low))));

/** Colours that reach equally far to both sides of a middle: as far as the values do, and `least` at least. */
export function around(middle, values, least) {
  const reach = values.reduce((most, value) => Math.max(most, Math.abs(value - middle)), least);
  return { low: middle - reach, high: middle + reach, middle };
}

/** A kernel position in words. */
export const placeOf = ({ kernel: [, columns] }, p) =>
  `row ${Math.floor(p / columns) + 1}, column ${(p % columns) + 1}`;

/** The largest width of a position with which a map is at most so wide. */
export const unitFor = ({ kernel }, side) => STEP * Math.max(1, Math.floor(side / STEP / Math.max(...kernel)));

/** Pixels of a drawing: between two maps, from one to the next, and in all. */
export function sizes({ kernel, maps, columns, unit }) {
  const gap = unit / STEP;
  const [tall, wide] = kernel.map((side) => unit * side + gap);
  const width = Math.min(columns, maps.length) * wide - gap;
  return { gap, tall, wide, width, height: Math.ceil(maps.length / columns) * tall - gap };
}

/** Call visit(color, left, top, strong) for each position of each map. */
export function visitPositions(drawing, colors, visit) {
  const { kernel, maps, columns, unit, low, high } = drawing;
  const { tall, wide } = sizes(drawing);
  maps.forEach((values, slot) => values.forEach((value, p) => {
    const left = (slot % columns) * wide + (p % kernel[1]) * unit;
    const top = Math.floor(slot / columns) * tall + Math.floor(p / kernel[1]) * unit;
    visit(colors[shade(value, drawing)], left, top, value >= (3 * high + low) / 4);
  }));
}

// Both ways put a dot in the strongest: both ends of the colours look alike in grey.

/** Many maps, as pixels of a canvas. */
export function paint(canvas, drawing, colors) {
  const { gap, width, height } = sizes(drawing);
  const { unit } = drawing;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  visitPositions(drawing, colors, (color, left, top, strong) => {
    for (let row = 0, at = top * width + left; row < unit; row += 1, at += width) {
      pixels.fill(color, at, at + unit);
      if (strong && row >= gap && row < 2 * gap) pixels.fill(0xff000000, at + gap, at + 2 * gap);
    }
  });
  Object.assign(canvas, { drawing, width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** One small map, as backgrounds of an element: a canvas for each would be a layer of the page for each. */
export function tint(element, { kernel }, map, unit, scale, colors) {
  const drawing = { kernel, maps: [map], columns: 1, unit, ...scale };
  const { gap, width, height } = sizes(drawing);
  const dots = [], squares = [];
  const square = (color, x, y, side) =>
    `linear-gradient(${color} 0 0) ${x}px ${y}px / ${side}px ${side}px no-repeat`;
  visitPositions(drawing, colors, (color, left, top, strong) => {
    squares.push(square(css(color), left, top, unit));
    if (strong) dots.push(square("#000", left + gap, top + gap, gap));
  });
  element.drawing = drawing;
  element.style = `width: ${width}px; height: ${height}px; background: ${[...dots, ...squares]}`;
  return element;
}

/** A frame around pixels of a canvas, to lie above it. */
export function frame({ width, height }, className, x, y, wide, tall) {
  const sides = [y / height, 1 - (x + wide) / width, 1 - (y + tall) / height, x / width];
  return h("i", { className, style: `inset: ${sides.map((share) => `${100 * share}%`).join(" ")}` });
}

/** The pixel of a canvas that the pointer is at, as column and row. */
export function pixelUnder({ target, offsetX, offsetY }) {
  const { width, height, clientWidth, clientHeight } = target;
  return [offsetX * width / clientWidth, offsetY * height / clientHeight].map(Math.floor);
}

/** The map and the position of a canvas that the pointer is at; null between two maps. */
export function positionUnder(event) {
  const { drawing } = event.target, { kernel: [rows, columns], unit } = drawing;
  const { tall, wide } = sizes(drawing);
  const [x, y] = pixelUnder(event);
  const slot = Math.floor(y / tall) * drawing.columns + Math.floor(x / wide);
  const row = Math.floor((y % tall) / unit), column = Math.floor((x % wide) / unit);
  if (slot >= drawing.maps.length || row >= rows || column >= columns) return null;
  return { slot, position: row * columns + column };
}

/** What the colours mean: the ends and the middle of a scale, which `write` writes. */
export function legend({ low, high, middle, write, about = "" }) {
  const ramp = Float32Array.from({ length: 61 }, (_, i) => low + (high - low) * i / 60);
  const drawing = { kernel: [1, 61], maps: [ramp], columns: 1, unit: STEP, low, high };
  const words = [write(low), middle ? `1/${Math.round(1 / middle)}` : "0", write(high)];
  return [Object.assign(h("i"), { drawing }), ...words.map((text) => h("span", {}, text)), h("em", {}, about)];
}
