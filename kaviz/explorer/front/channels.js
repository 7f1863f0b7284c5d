// The maps of a layer's channels: for A, for B and their difference.

import { ARROWS, copyOf, fixed, renew, report, signed, whole } from "./elements.js";
import { STEP, around, frame, legend, paint, placeOf, positionUnder, sizes } from "./maps.js";
import { distances, pick } from "./packs.js";

const LARGEST = 27; // pixels of a position, to a side
const SMALLEST = 16; // pixels of a map, at least

export class Channels {
  constructor(explorer) {
    const { grids, grid } = explorer.ui;
    this.explorer = explorer;
    grids.append(...Array.from({ length: 3 }, () => copyOf(grid)));
    grids.onpointermove = (event) => this.point(event);
    grids.onclick = (event) => this.point(event) && this.pin();
    this.observer = new ResizeObserver(() => explorer.data && this.width !== this.room() && explorer.draw());
    this.observer.observe(grids);
  }

  /** The width that there is for the maps of one image. */
  room() {
    return this.explorer.ui.grids.firstElementChild.clientWidth;
  }

  // -- what there is to draw

  /** Find `grids` (A, B and their difference), and `slots`: the channels of this page, which have a slot in each. */
  arrange() {
    const { data, layer, state, first, second, cursor, ui } = this.explorer;
    ui.grids.classList.toggle("kv-one", !second);
    this.width = this.room(); // before anything is changed: after it the page would be laid out again
    const grid = (who) => ({
      name: who.name,
      title: `${who.name}: ${data.names[who.image]}`,
      maps: data.look(layer, who).maps,
      ...this.scaleOf(layer),
    });
    this.grids = second ? [grid(first), grid(second)] : [grid(first)];
    this.distances = null;
    if (second) {
      const [a, b] = this.grids.map(({ maps }) => maps);
      this.grids.push(this.differenceOf(a, b));
      this.distances = distances(layer, a, b);
    }
    this.fit = this.fitInto(second ? 340 : 300);
    const { room } = this.fit;
    this.pages = Math.ceil(layer.channels / room);
    state.page = whole(state.page, 0, this.pages - 1);
    this.slots = this.order().slice(state.page * room, (state.page + 1) * room);
    cursor.slot = whole(cursor.slot, 0, this.slots.length - 1);
    cursor.position = whole(cursor.position, 0, layer.positions - 1);
  }

  differenceOf(a, b) {
    const { first, second } = this.explorer, title = `${first.name} − ${second.name}`;
    const maps = a.map((value, index) => value - b[index]);
    const about = "difference, on its own scale";
    return { name: title, title, maps, ...around(0, maps, 0.001), about, write: (value) => fixed(value, 3) };
  }

  /** The colours of a layer's maps, which fit its own values or those of all layers. */
  scaleOf(layer) {
    const { data, state } = this.explorer, even = 1 / layer.positions;
    const farthest = Math.max(...(state.scale === "all" ? data.layers : [layer]).map(({ name, positions }) => {
      const { low, high } = data.arrays[`attention/${name}`];
      return Math.max(1 - low * positions, high * positions - 1);
    }));
    const reach = even * (Math.min(1, farthest) || 0.01); // no attention is less than none
    const about = farthest > 1 ? `attention, at most ${fixed(even * (1 + farthest), 3)}` : "attention";
    return { low: even - reach, high: even + reach, middle: even, about, write: (value) => fixed(value, 3) };
  }

  /** The largest maps with which all channels find room in a height, or else the smallest that can be seen. */
  fitInto(height) {
    const { kernel, channels } = this.explorer.layer;
    const least = STEP * Math.ceil(SMALLEST / STEP / Math.max(...kernel));
    const fit = (unit) => {
      const [down, across] = kernel.map((side) => unit * (side + 1 / STEP));
      const columns = Math.max(1, Math.floor(this.width / across));
      return { unit, columns, room: columns * Math.max(1, Math.floor(height / down)) };
    };
    let found = fit(LARGEST);
    while (found.room < channels && found.unit > least) found = fit(found.unit - STEP);
    return found;
  }

  /** Channels in the chosen order. */
  order() {
    const { data, layer, shares, state, first } = this.explorer;
    const channels = [...Array(layer.channels).keys()];
    const by = {
      number: () => channels.map(() => 0),
      dependence: () => data.arrays[`dependence/${layer.name}`].data,
      entropy: () => data.look(layer, first).entropies.map((entropy) => -entropy),
      share: () => data.row(shares, first.image),
      difference: () => this.distances,
    }[state.sort]();
    return channels.sort((x, y) => by[y] - by[x] || x - y);
  }

  // -- drawing

  draw() {
    const { layer: { channels }, state: { page }, ui } = this.explorer, { grids, slots, pages } = this;
    const start = page * this.fit.room;
    ui.pages.textContent = pages === 1 ? `all ${channels}` : `${start + 1}–${start + slots.length} of ${channels}`;
    [ui.previous.value, ui.next.value] = [page - 1, page + 1];
    [...ui.grids.children].forEach((figure, number) => {
      figure.hidden = !grids[number];
      if (grids[number]) this.drawGrid(figure, grids[number]);
    });
    this.drawFrames();
  }

  drawGrid(figure, { title, maps, ...scale }) {
    const { data, layer, first, second, outcome, loads, ui } = this.explorer;
    const { slots, fit: { columns, unit } } = this;
    const [caption, { firstElementChild: canvas }, bar] = figure.children;
    const of = [layer.name, slots, columns, unit, scale, first.image, second?.image, outcome?.name, loads];
    renew(canvas, of, () => { // its pixels take longer than all else
      const shown = slots.map((channel) => pick(layer, maps, channel));
      paint(canvas, { kernel: layer.kernel, maps: shown, columns, unit, ...scale }, data.diverging);
      return [];
    });
    const what = `Maps of ${slots.length} channels of ${layer.name}`, sorted = ui.sort.selectedOptions[0].text;
    canvas.setAttribute("aria-label", `${what}, ${title}, sorted by ${sorted}`);
    caption.textContent = title;
    bar.replaceChildren(...legend(scale));
  }

  /** Frames around the maps of pinned channels, and the one that the keys are at. */
  drawFrames() {
    const { layer, pinned, cursor, ui } = this.explorer, { columns } = this.fit;
    const here = pinned.filter((pin) => pin.layer === layer).map(({ channel }) => this.slots.indexOf(channel));
    for (const figure of ui.grids.querySelectorAll("figure:not([hidden])")) {
      const [canvas, frames] = figure.querySelector(".kv-grid").children;
      const { tall, wide, gap } = sizes(canvas.drawing);
      const frameOf = (slot, kind) =>
        frame(canvas, kind, (slot % columns) * wide, Math.floor(slot / columns) * tall, wide - gap, tall - gap);
      const pins = here.filter((slot) => slot >= 0).map((slot) => frameOf(slot, "kv-pinned"));
      frames.replaceChildren(...pins, frameOf(cursor.slot, "kv-cursor"));
    }
  }

  // -- pointing at a channel and a position

  /** Move to what is under the pointer; false between two maps. */
  point(event) {
    const found = event.target.matches("canvas") && positionUnder(event);
    if (found) this.explorer.move(found);
    return Boolean(found);
  }

  onKey({ key }) {
    const { explorer, slots, fit: { columns } } = this, { cursor, regions, state } = explorer;
    const [across, down] = ARROWS[key] ?? [0, 0], next = cursor.slot + across + down * columns;
    if (next < 0 || next >= slots.length) explorer.set({ page: state.page + Math.sign(next) });
    else if (next !== cursor.slot) explorer.move({ slot: next });
    else if (key === "Enter" || key === " ") this.pin();
    else return regions.positions.onKey({ key });
    return true;
  }

  pin() {
    const { layer, cursor, regions } = this.explorer;
    regions.pins.toggle(`${layer.name}:${this.slots[cursor.slot]}`);
  }

  say() {
    const { data, layer, cursor: { slot, position }, shares, first, outcome, ui } = this.explorer;
    const channel = this.slots[slot], dependence = data.arrays[`dependence/${layer.name}`].data[channel];
    const share = data.row(shares, first.image)?.[channel];
    const { step } = (outcome ?? data).arrays[`attention/${layer.name}`];
    const values = this.grids.map(({ maps }) => maps[position * layer.channels + channel]);
    const [own, ...others] = this.grids.map(({ name, middle }, number) =>
      `${name} ${middle ? fixed(values[number]) : signed(values[number])}`);
    const times = `${fixed(values[0] * layer.positions, 2)} × 1/${layer.positions}`;
    const about = [
      `input dependence ${dependence.toFixed(3)}`,
      `entropy ${data.look(layer, first).entropies[channel].toFixed(3)}`,
      this.distances && `difference ${this.distances[channel].toFixed(3)}`,
      share !== undefined && `share ${(100 * share).toFixed(2)} %`,
      `attention to ±${(step / 2).toPrecision(1)}`,
    ];
    const title = `${layer.name} · channel ${channel} · ${placeOf(layer, position)}`;
    report(ui.readout, title, [`${own} = ${times}`, ...others].join(" · "), about.filter(Boolean).join(" · "));
  }
}
