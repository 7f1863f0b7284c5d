// What the model sees: the images, attributions over them, and predictions.

import { ARROWS, brief, copyOf, h, renew, report, whole } from "./elements.js";
import { frame, pixelUnder, shade } from "./maps.js";

const LINES = 4; // classes under an image, besides the true one and the one from before

export class Images {
  constructor(explorer) {
    const { pair, picture } = explorer.ui;
    this.explorer = explorer;
    this.pixel = [0, 0]; // of the attribution, column and row
    pair.append(...Array.from({ length: 2 }, () => copyOf(picture)));
    pair.onpointermove = (event) => event.target.matches("canvas") && this.read(...pixelUnder(event));
  }

  draw() {
    const { state, attribution, pictured, ui } = this.explorer;
    [...ui.pair.children].forEach((figure, number) => {
      figure.hidden = !pictured[number];
      if (pictured[number]) this.drawImage(figure, pictured[number]);
    });
    ui.attributionNote.hidden = ui.pixelReadout.hidden = !attribution;
    if (!attribution) return;
    ui.attributionNote.textContent = `What speaks for ${attribution.about}: `
      + (state.mode === "signed" ? "red for it, blue against it." : "yellow is strong, either way.");
    this.read(...this.pixel);
  }

  drawImage(figure, { name, image }) {
    const { data, attribution, loads } = this.explorer, about = data.about[image];
    const [caption, picture, bars] = figure.children, [holder, overlay] = picture.children;
    caption.replaceChildren(h("b", {}, name), ` ${about}`);
    renew(holder, [image, loads], () => [this.show(picture, image)]);
    const percent = data.row(attribution?.arrays.percent, image);
    overlay.hidden = !percent;
    if (percent) this.paint(overlay, percent);
    overlay.setAttribute("aria-label", `${attribution?.method} of ${name}: ${about}`);
    const ranking = this.ranking(image);
    renew(bars, ranking, () => ranking.map((line) => this.bar(line)));
  }

  /** The image itself; the box that it stands in gets its proportions. */
  show(picture, image) {
    const { data, pictures } = this.explorer;
    const shown = pictures[image]?.cloneNode() ?? h("span", {}, "—");
    const { naturalWidth: wide = 1, naturalHeight: tall = 1 } = shown;
    picture.style.aspectRatio = `${wide} / ${tall}`;
    picture.style.width = `${260 * Math.min(1, wide / tall)}px`;
    return Object.assign(shown, { alt: data.about[image], className: wide < 80 ? "kv-pixels" : "" });
  }

  // -- attributions

  paint(canvas, percent) {
    const { attribution, data: { diverging, sequential }, state } = this.explorer;
    const [, rows, columns] = attribution.arrays.percent.shape;
    canvas.className = columns <= 16 ? "kv-pixels" : "";
    canvas.style.opacity = `${state.opacity}%`;
    const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    const seen = (color, alpha) => (color & 0xffffff) | (alpha << 24);
    percent.forEach((code, index) => {
      const strength = Math.abs(code - 100) / 100;
      pixels[index] = state.mode === "signed"
        ? seen(diverging[shade(code, { low: 0, high: 200 })], Math.round(255 * Math.min(1, 1.5 * strength)))
        : seen(sequential[shade(strength, { low: 0, high: 1 })], 255);
    });
    [canvas.width, canvas.height] = [columns, rows];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** The value of the attribution at a cell, in both images. */
  read(column, row) {
    const { attribution, data, pictured, ui } = this.explorer;
    const { percent, scale } = attribution.arrays, [, rows, columns] = percent.shape;
    const x = whole(column, 0, columns - 1), y = whole(row, 0, rows - 1);
    this.pixel = [x, y];
    const values = pictured.map(({ name, image }) => {
      const cells = data.row(percent, image);
      if (!cells) return `${name}: not computed`;
      const code = cells[y * columns + x] - 100;
      return `${name} ${brief(code)} % of the image's strongest, ${brief(code * scale.data[image] / 100)}`;
    });
    const title = `row ${y + 1}, column ${x + 1} of ${rows} × ${columns}`;
    report(ui.pixelReadout, title, values.join(" · "), "to ±0.5 % of the strongest");
    for (const canvas of ui.pair.querySelectorAll("canvas")) {
      canvas.nextElementSibling.replaceChildren(frame(canvas, "kv-cursor", x, y, 1, 1));
    }
  }

  onKey({ key }) {
    const by = ARROWS[key];
    if (by) this.read(this.pixel[0] + by[0], this.pixel[1] + by[1]);
    return Boolean(by);
  }

  // -- predictions

  bar({ title, text, now, before }) {
    const bar = copyOf(this.explorer.ui.bar), [name, value, { children: [share, mark] }] = bar.children;
    name.title = name.textContent = title;
    value.textContent = text;
    share.style.width = `${100 * now}%`;
    if (before === undefined) mark.remove();
    else mark.style.left = `${100 * before}%`;
    return bar;
  }

  /** The likeliest classes, the true one and the one from before: {title, text, now, before}. */
  ranking(image) {
    const { data, outcome } = this.explorer, { classes, labels, predictions } = data;
    const now = data.row((outcome ?? data).arrays.probabilities, image);
    if (!now) {
      const title = classes[predictions[image]];
      return title ? [{ title, text: "predicted", now: 0 }] : [];
    }
    const before = outcome && data.row(data.arrays.probabilities, image);
    const best = [...now.keys()].sort((x, y) => now[y] - now[x]).slice(0, LINES);
    const also = [labels[image], before ? before.indexOf(Math.max(...before)) : -1].filter((index) => index >= 0);
    return [...new Set([...best, ...also])].map((index) => {
      const known = index === labels[image] ? "✓ true · " : "";
      const earlier = before ? ` (before ${before[index].toFixed(2)})` : "";
      const text = known + now[index].toFixed(2) + earlier;
      return { title: classes[index], text, now: now[index], before: before?.[index] };
    });
  }
}
