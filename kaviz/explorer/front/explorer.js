// The attention explorer, and its two homes: JupyterLab (through anywidget) and pages without a kernel.
// It draws from packs, and keeps what is chosen in one flat `state`; each region of it has its own file.

import { Channels } from "./channels.js";
import { drawControls } from "./controls.js";
import { h, whole } from "./elements.js";
import { save } from "./files.js";
import { Images } from "./images.js";
import { Kernel } from "./kernel.js";
import { css } from "./maps.js";
import { Data, unpack } from "./packs.js";
import { Pins, pinsIn } from "./pins.js";
import { Positions } from "./positions.js";
import { Film, Layers } from "./strips.js";

const START = {
  a: 0, b: -1, layer: "", sort: "dependence", page: 0, scale: "layer", pins: "", outcome: "",
  method: "", opacity: 70, mode: "signed", positions: "", class: "", right: "", find: "",
};

class Explorer {
  /** `host` is where it stands: {state (what is chosen at first), keep(state), link() or kernel: {ask, abilities}}. */
  constructor(root, host) {
    Object.assign(this, { root, host, abilities: host.kernel?.abilities, form: root.querySelector("form") });
    this.state = { ...START, ...host.state };
    this.cursor = { slot: 0, position: 0 }; // which of the maps that are shown is pointed at, and where
    this.loads = 0; // how often there were new data
    root.classList.add("kaviz-explorer");
    root.querySelector(host.kernel ? ".kv-no-kernel" : ".kv-kernel").remove();
    this.ui = {}; // parts and controls by name
    for (const element of root.querySelectorAll("[data-part], [name]")) {
      this.ui[element.dataset.part ?? element.name] = element;
    }
    this.ui.copy.hidden = !host.link;
    this.kernel = new Kernel(this);
    this.regions = { // in the order in which they are drawn
      film: new Film(this),
      layers: new Layers(this),
      images: new Images(this),
      channels: new Channels(this),
      pins: new Pins(this),
      positions: new Positions(this),
    };
    this.actions = { // of buttons, by their data-act
      save: (kind) => save(this, kind),
      copyLink: () => this.copyLink(),
      togglePin: (key) => this.regions.pins.toggle(key),
      ask: (what) => this.kernel.ask(what),
      chooseFiles: () => this.ui.files.click(),
    };
    this.listen();
  }

  /** Take it off the page. */
  close() {
    this.regions.channels.observer.disconnect();
    this.root.remove();
  }

  // -- data

  /** Show what the packs hold, or say why not. */
  async open(packs) {
    await this.load(packs).catch(({ message }) => this.tell(`Cannot show this view: ${message}`, true));
    this.form.hidden = false;
  }

  async load(packs) {
    const data = new Data(await Promise.all(packs.map(unpack))), before = this.data?.names.length;
    const pictures = data.pictures.map((src) => h("img", { src, alt: "", draggable: false, decoding: "sync" }));
    await Promise.allSettled(pictures.map((picture) => picture.decode())); // then their sizes are known
    Object.assign(this, { data, pictures, loads: this.loads + 1 }); // not before all can be drawn
    if (before < data.names.length) Object.assign(this.state, { a: before, class: "", right: "", find: "" });
    const stops = Array.from({ length: 17 }, (_, i) => css(data.diverging[Math.min(255, i * 16)]));
    this.root.style.setProperty("--kv-diverging", `linear-gradient(to right, ${stops})`);
    this.form.hidden = false;
    this.regions.film.make();
    this.regions.layers.make();
    this.draw();
    for (const strip of [this.ui.film, this.ui.strip]) { // the chosen ones come into sight
      const { offsetLeft, offsetWidth } = strip.querySelector(":checked").parentElement;
      strip.scrollLeft = offsetLeft - strip.offsetLeft - (strip.clientWidth - offsetWidth) / 2;
    }
    this.root.dataset.ready = "true";
  }

  // -- state

  /** Choose. */
  set(changes) {
    const first = "layer" in changes || "sort" in changes ? { page: 0 } : {};
    Object.assign(this.state, first, changes);
    this.draw();
    this.keeping ??= requestAnimationFrame(() => setTimeout(() => { // once it can be seen: it takes as long as drawing
      this.keeping = null;
      this.host.keep(Object.fromEntries(Object.entries(this.state).filter(([name, value]) => value !== START[name])));
    }));
  }

  /** Show what has been chosen elsewhere. */
  show(state) {
    this.state = { ...START, ...state };
    this.draw();
  }

  /** Find what is chosen, and make it good where it is not there (an address may say anything). */
  settle() {
    const { state, data } = this, last = data.names.length - 1;
    state.a = whole(state.a, 0, last);
    state.b = whole(state.b, -1, last);
    state.opacity = whole(state.opacity, 0, 100);
    this.layer = data.layers.find(({ name }) => name === state.layer) ?? data.layers[0];
    state.layer = this.layer.name;
    this.shares = data.arrays[`share/${state.layer}`];
    this.outcome = data.outcomes.find(({ name }) => name === state.outcome) ?? null;
    this.attribution = data.attributions.find(({ method }) => method === state.method) ?? null;
    this.contribution = data.contributions.find(({ method }) => method === state.positions) ?? data.contributions[0];
    this.pinned = pinsIn(state.pins, data.layers);
    this.first = { name: "A", image: state.a, outcome: this.outcome };
    this.second = this.secondOf(state);
    this.pictured = state.b >= 0 ? [this.first, this.second] : [this.first];
    const known = [...this.ui.sort.options].some(({ value }) => value === state.sort);
    if (!known || !this.canSortBy(state.sort)) state.sort = START.sort;
  }

  /** What A is compared with: B, or A without the intervention. */
  secondOf({ a, b }) {
    if (b >= 0) return { name: "B", image: b, outcome: this.outcome };
    return this.outcome && { name: "A before", image: a, outcome: null };
  }

  canSortBy(sort) {
    return { difference: Boolean(this.second), share: Boolean(this.shares) }[sort] ?? true;
  }

  // -- drawing

  draw() {
    this.settle();
    this.regions.channels.arrange();
    this.drawControls();
    for (const region of Object.values(this.regions)) region.draw();
    this.say();
  }

  drawControls() {
    const { data: { title, names, layers, known, right }, ui } = this;
    const wrong = known.length ? `, ${right.filter((one) => one === false).length} wrong` : "";
    ui.heading.textContent = title;
    this.summary = `${names.length} image${names.length === 1 ? "" : "s"}, ${layers.length} layers${wrong}`;
    if (!this.message) ui.status.textContent = this.summary;
    drawControls(this);
  }

  /** Point at another channel (of those shown) or position. */
  move(cursor) {
    Object.assign(this.cursor, cursor);
    this.regions.channels.drawFrames();
    this.say();
  }

  /** Say what is pointed at, in words and numbers. */
  say() {
    this.regions.channels.say();
    this.regions.positions.say();
  }

  /** Say something that has happened, in place of the summary. */
  tell(text, wrong = false) {
    const { status } = this.ui;
    this.message = text;
    status.textContent = text || this.summary;
    status.setAttribute("role", wrong ? "alert" : "status");
    status.classList.toggle("kv-wrong", wrong);
  }

  async copyLink() {
    const address = this.host.link();
    const copied = await navigator.clipboard?.writeText(address).then(() => true, () => false);
    this.tell(copied ? "The address of this view is copied." : `The address of this view: ${address}`);
  }

  // -- mouse and keys

  listen() {
    const { form, ui } = this;
    form.onsubmit = (event) => event.preventDefault();
    form.oninput = ({ target }) => {
      if (target.name in START) this.set({ [target.name]: target.value });
      else if (target === ui.files) this.kernel.upload();
      else this.drawControls();
    };
    form.onclick = (event) => this.onClick(event);
    form.onkeydown = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      event.stopPropagation(); // JupyterLab has keys of its own
      const region = this.regions[event.target.closest("[data-keys]")?.dataset.keys];
      if (region?.onKey(event) || this.onRadioKey(event)) event.preventDefault();
    };
  }

  onClick(event) {
    const { target, shiftKey, detail } = event, button = target.closest("button");
    const { act, of } = button?.dataset ?? {};
    if (act) this.actions[act](of);
    else if (button?.name) this.set({ [button.name]: button.value });
    if (target.name !== "a" || !detail || !(shiftKey || this.ui.pick.value === "b")) return; // no detail: by the arrows
    event.preventDefault(); // A stays what it is
    setTimeout(() => this.set({ b: target.value })); // once the browser has put it back
  }

  /** Home and End among radio buttons; the browser knows the arrows. */
  onRadioKey({ key, target: { type, name } }) {
    if (type !== "radio" || !["Home", "End"].includes(key)) return false;
    const radios = [...this.form.querySelectorAll(`[type=radio][name=${name}]`)].filter((one) => one.offsetParent);
    const radio = radios.at(key === "Home" ? 0 : -1);
    radio.focus();
    radio.click();
    return true;
  }
}

// ---------------------------------------------------------------------------------------------------- its two homes

/** In a notebook: anywidget calls this. */
function render({ model, el }) {
  const root = h("div", {}, document.createRange().createContextualFragment(model.get("frame")));
  el.append(root);
  let kept;
  const explorer = new Explorer(root, {
    state: model.get("state"),
    keep: (state) => {
      kept = state;
      model.set("state", state);
      model.save_changes();
    },
    kernel: { abilities: model.get("abilities"), ask: (message, buffers) => model.send(message, undefined, buffers) },
  });
  const load = () => explorer.open([model.get("view_data"), ...model.get("extra_data")]);
  let loading = load();
  const handlers = {
    "change:view_data change:extra_data": () => { loading = loading.then(load); },
    "change:state": () => explorer.data && model.get("state") !== kept && explorer.show(model.get("state")),
    "msg:custom": (message) => { loading = loading.then(() => explorer.kernel.heard(message)); },
  };
  Object.entries(handlers).forEach(([event, handler]) => model.on(event, handler));
  return () => {
    Object.entries(handlers).forEach(([event, handler]) => model.off(event, handler));
    explorer.close();
  };
}

/** In a page: the packs stand in it, and what is chosen stands in the address. */
function mount(root, number) {
  const prefix = number ? `#explorer${number + 1}?` : "#explorer?";
  const chosen = () => {
    const { hash } = location;
    return hash.startsWith(prefix) ? Object.fromEntries(new URLSearchParams(hash.slice(prefix.length))) : null;
  };
  const packs = [...root.querySelectorAll("script")].map(({ textContent }) =>
    Uint8Array.from(atob(textContent.trim()), (sign) => sign.charCodeAt(0)));
  const explorer = new Explorer(root, {
    state: chosen() ?? JSON.parse(root.dataset.state || "{}"),
    keep: (state) => {
      const address = prefix + new URLSearchParams(state);
      try { history.replaceState(null, "", address); } catch { location.hash = address; }
    },
    link: () => location.href,
  });
  window.addEventListener("hashchange", () => explorer.data && chosen() && explorer.show(chosen()));
  explorer.open(packs);
}

document.querySelectorAll("[data-kaviz-explorer]").forEach(mount);

export default { render };
