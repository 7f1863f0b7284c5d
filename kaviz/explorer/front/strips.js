// The two strips: the film of images, and the layers.

import { ARROWS, copyOf } from "./elements.js";
import { around, tint, unitFor } from "./maps.js";

export class Film {
  constructor(explorer) {
    this.explorer = explorer;
  }

  make() {
    const { data: { names, about, right }, pictures, ui } = this.explorer;
    ui.film.replaceChildren(...names.map((name, image) => {
      const frame = copyOf(ui.frame), [radio, thumb, label] = frame.children;
      frame.title = about[image];
      radio.value = image;
      thumb.append(pictures[image] ?? "—");
      label.textContent = right[image] === null ? name : `${right[image] ? "✓" : "✗"} ${name}`;
      return frame;
    }));
  }

  /** Show the images of the class, the prediction and the name that are chosen: `shown`. */
  draw() {
    const { data: { names, labels, right }, state, ui } = this.explorer, find = state.find.toLowerCase();
    const fits = (image) => (state.class === "" || String(labels[image]) === state.class)
      && (state.right === "" || right[image] === (state.right === "right"))
      && names[image].toLowerCase().includes(find);
    this.shown = [...names.keys()].filter(fits);
    [...ui.film.children].forEach((frame, image) => {
      frame.hidden = !fits(image);
      frame.firstElementChild.checked = image === state.a;
      frame.classList.toggle("kv-b", image === state.b);
    });
    ui.filmNote.textContent = this.shown.length === names.length
      ? "Click for A, shift-click for B. Keys: arrows for A, with Shift for B, Delete for no B."
      : `${this.shown.length} of ${names.length} images`;
  }

  /** What the arrows alone do, the browser knows. */
  onKey({ key, shiftKey }) {
    const { explorer, shown } = this, { state, ui } = explorer;
    const [step] = ARROWS[key] ?? [];
    const image = shown[shown.indexOf(state.b < 0 ? state.a : state.b) + step];
    if (key === "Delete" || key === "Backspace") explorer.set({ b: -1 });
    else if (shiftKey && image !== undefined) {
      explorer.set({ b: image });
      ui.film.children[image].scrollIntoView({ block: "nearest", inline: "nearest" });
    } else return shiftKey && step;
    return true;
  }
}

export class Layers {
  constructor(explorer) {
    this.explorer = explorer;
  }

  make() {
    const { data: { layers }, ui } = this.explorer;
    const names = layers.map(({ name }) => name);
    const short = names.map((name) => name.replace(/\.(conv\d?|0)?(\.\d)?$/, ""));
    const shown = new Set(short).size === names.length ? short : names; // "down.0.0" and "down.0.3" would be one
    ui.strip.replaceChildren(...layers.map(({ name, kernel, channels }, number) => {
      const item = copyOf(ui.item), [radio, , label] = item.children;
      item.title = `${name}: ${kernel.join("×")}, ${channels} channels`;
      radio.value = name;
      label.textContent = shown[number];
      return item;
    }));
  }

  /** Each layer's mean map and mean entropy, in A. */
  draw() {
    const { data, ui, layer: chosen, first } = this.explorer;
    data.layers.forEach((layer, number) => {
      const [radio, map, , meter, note] = ui.strip.children[number].children;
      const { mean, entropy } = data.look(layer, first), even = 1 / layer.positions;
      radio.checked = layer === chosen;
      tint(map, layer, mean, unitFor(layer, 48), around(even, mean, even / 100), data.diverging);
      meter.firstElementChild.style.width = `${100 * Math.max(0, Math.min(1, entropy))}%`;
      note.textContent = entropy.toFixed(2);
      radio.setAttribute("aria-label", `${layer.name}, ${layer.channels} channels, mean entropy ${note.textContent}`);
    });
  }
}
