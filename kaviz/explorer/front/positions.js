// Kernel positions: what each is given (attention), beside what is made of it (its contribution to a class).

import { brief, fixed, h, renew, report, signed } from "./elements.js";
import { around, css, legend, placeOf, shade } from "./maps.js";
import { correlation } from "./packs.js";

export class Positions {
  constructor(explorer) {
    const { panels } = explorer.ui;
    this.explorer = explorer;
    panels.onpointerover = ({ target }) =>
      target.matches("td") && explorer.move({ position: Number(target.dataset.position) });
  }

  draw() {
    const { data, layer, contribution, pictured, ui } = this.explorer, even = 1 / layer.positions;
    const means = pictured.map((who) => data.look(layer, who).mean);
    const used = pictured.map(({ image }) => data.row(contribution?.arrays[`values/${layer.name}`], image));
    const ofMeans = around(even, means.flatMap((mean) => [...mean]), even / 100);
    const ofUsed = around(0, used.flatMap((values) => [...values ?? []]), 1e-12);
    this.panels = pictured.flatMap(({ name }, number) => {
      const title = `${name}: attention, mean of the channels`;
      const given = { title, values: means[number], write: (value) => fixed(value, 3), ...ofMeans };
      if (!used[number]) return [given];
      const write = (value) => brief(value, 2);
      return [given, { title: `${name}: ${contribution.method}`, values: used[number], write, ...ofUsed }];
    });
    renew(ui.panels, [this.panels, layer.name], () => this.panels.map((panel) => this.make(panel)));
    ui.positions.closest(".kv-controls").hidden = !contribution;
    ui.positionNote.textContent = this.note(means[0], used[0]);
  }

  note(mean, used) {
    const { contribution } = this.explorer;
    if (!contribution) {
      return "This view has no position attributions: what a position is given is shown, not what is made of it.";
    }
    const { about, method, note } = contribution;
    if (!used) return `${method} has no values for this layer, or for A.`;
    const together = signed(correlation(mean, used), 2);
    return `Contribution to ${about}. Attention and contribution of A correlate by ${together}. ${note}`;
  }

  /** A table of the positions, as the kernel has them. */
  make(panel) {
    const { layer: { kernel: [rows, columns] }, data: { diverging } } = this.explorer, { title, values, write } = panel;
    const cells = Array.from(values, (value, p) => {
      const level = shade(value, panel), ink = Math.abs(level - 127.5) < 70 ? "#111" : "#fff";
      const style = `background: ${css(diverging[level])}; color: ${ink}`;
      return h("td", { style, "data-position": p }, write(value));
    });
    const lines = Array.from({ length: rows }, () => h("tr", {}, ...cells.splice(0, columns)));
    const table = h("table", { "aria-label": title }, h("tbody", {}, ...lines));
    return h("figure", {}, h("figcaption", {}, title), table, h("div", { className: "kv-scale" }, ...legend(panel)));
  }

  onKey({ key }) {
    const { layer: { positions }, cursor: { position } } = this.explorer, by = { "[": positions - 1, "]": 1 }[key];
    if (by) this.explorer.move({ position: (position + by) % positions });
    return Boolean(by);
  }

  say() {
    const { layer, cursor: { position }, ui } = this.explorer;
    for (const cell of ui.panels.querySelectorAll("td")) {
      cell.classList.toggle("kv-at", Number(cell.dataset.position) === position);
    }
    const values = this.panels.map(({ title, values: { [position]: value }, middle }) =>
      `${title} ${middle ? fixed(value, 5) : brief(value, 6)}`);
    report(ui.positionReadout, `${layer.name} · ${placeOf(layer, position)}`, values.join(" · "));
  }
}
