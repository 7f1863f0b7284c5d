// Pinned channels: their maps in A, in B, and in the images of the film.

import { copyOf, fixed, h, renew } from "./elements.js";
import { STEP, around, tint, unitFor } from "./maps.js";
import { pick } from "./packs.js";

const IMAGES = 24; // of the film, at most

/** The pins that a text names, "layer:channel layer:channel"; what is not there is left out. */
export function pinsIn(text, layers) {
  return text.split(" ").flatMap((key) => {
    const at = key.lastIndexOf(":"), channel = Number(key.slice(at + 1));
    const layer = layers.find(({ name }) => name === key.slice(0, at));
    return layer && channel >= 0 && channel < layer.channels ? [{ key, layer, channel }] : [];
  });
}

export class Pins {
  constructor(explorer) {
    this.explorer = explorer;
  }

  toggle(key) {
    const { explorer } = this, { pinList, grids } = explorer.ui;
    const keys = explorer.pinned.map((pin) => pin.key);
    const others = keys.filter((one) => one !== key);
    explorer.set({ pins: (keys.includes(key) ? others : [...keys, key]).join(" ") });
    if (document.activeElement !== document.body) return;
    (pinList.querySelector("button") ?? grids.querySelector("canvas")).focus(); // the button that was pressed is gone
  }

  draw() {
    const { pinned, ui: { pinList } } = this.explorer;
    pinList.parentElement.hidden = !pinned.length;
    const there = Object.fromEntries([...pinList.children].map((item) => [item.dataset.key, item]));
    renew(pinList, pinned.map(({ key }) => key), () => pinned.map((pin) => there[pin.key] ?? this.make(pin)));
    pinned.forEach((pin, number) => this.drawPin(pin, ...pinList.children[number].lastElementChild.children));
  }

  make({ key, layer, channel }) {
    const item = copyOf(this.explorer.ui.pin), [title, unpin] = item.firstElementChild.children;
    item.dataset.key = unpin.dataset.of = key;
    title.value = layer.name;
    title.textContent = `${layer.name} · channel ${channel}`;
    unpin.setAttribute("aria-label", `Unpin ${layer.name}, channel ${channel}`);
    return item;
  }

  drawPin({ layer, channel }, chosen, others) {
    const { data, regions, first, second, outcome, loads } = this.explorer;
    const scale = regions.channels.scaleOf(layer), side = unitFor(layer, 42);
    const map = (who) => pick(layer, data.look(layer, who).maps, channel);
    const figure = (title, values, colors = scale, unit = side) => {
      const words = `${title}: ${[...values].map((value) => fixed(value)).join("  ")}`;
      const drawn = h("i", { className: "kv-map", role: "img", title: words, "aria-label": words });
      return h("figure", {}, h("figcaption", {}, title), tint(drawn, layer, values, unit, colors, data.diverging));
    };
    renew(chosen, [first.image, second?.name, second?.image, outcome?.name, scale, loads], () => {
      const a = map(first), figures = [figure(first.name, a)];
      if (!second) return figures;
      const b = map(second), difference = a.map((value, p) => value - b[p]);
      return [...figures, figure(second.name, b), figure("difference", difference, around(0, difference, 0.001))];
    });
    const images = regions.film.shown.slice(0, IMAGES), smaller = STEP * Math.ceil(side / STEP / 2);
    renew(others, [images, outcome?.name, scale, loads], () => [
      h("p", { className: "kv-note" }, `in ${images.length} of the images`),
      ...images.map((image) => figure(data.names[image], map({ image, outcome }), scale, smaller)),
    ]);
  }
}
