// What needs the kernel: interventions, attributions, images of the user's own.

export class Kernel {
  constructor(explorer) {
    this.explorer = explorer;
    this.working = false;
  }

  /** Ask for "intervene", "attribute", "upload" or "cancel", with what is chosen for each. */
  ask(what, more = {}, buffers = []) {
    const { host, layer, state, ui: { kind, where, spot, compute } } = this.explorer;
    if (what !== "cancel") {
      this.explorer.tell("");
      this.show(true, "asked …", 0, 1);
    }
    const layers = where.value === "layer" ? layer.name : "*";
    const chosen = { kind: kind.value, layers, position: Number(spot.value), donor: state.b, method: compute.value };
    host.kernel.ask({ ask: what, ...chosen, ...more }, buffers);
  }

  /** Ask for the files that have been chosen. */
  async upload() {
    const { files: input } = this.explorer.ui, files = [...input.files];
    const contents = await Promise.all(files.map((file) => file.arrayBuffer()));
    input.value = ""; // so that the same file can be given again
    if (files.length) this.ask("upload", { names: files.map(({ name }) => name) }, contents);
  }

  /** What the kernel says. */
  heard({ say, what, done, of, text, show }) {
    this.show(say === "progress", `${what}: ${done} of ${of}`, done ?? 0, of ?? 1);
    if (say === "progress") return;
    this.explorer.tell(text, say === "error");
    if (show) this.explorer.set(show);
  }

  /** Show how far it is. */
  show(working, text, value, max) {
    const { work } = this.explorer.ui, [progress, note] = work.children;
    work.hidden = !working;
    note.textContent = text;
    Object.assign(progress, { value, max });
    this.working = working;
    this.explorer.drawControls();
  }
}
