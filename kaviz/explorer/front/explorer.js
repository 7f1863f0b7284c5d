// The attention explorer: one module for JupyterLab (through anywidget) and for pages without a kernel.
// It draws from packs (kaviz/explorer/views.py says what is in them) and keeps what is chosen in one flat `state`.

const START = {
  a: 0, b: -1, layer: "", sort: "dependence", page: 0, scale: "layer", pins: "", outcome: "",
  method: "", opacity: 70, mode: "signed", positions: "", class: "", right: "", find: "",
};
const PINNED_IMAGES = 24; // maps of a pinned channel in further images
const LINES = 4; // classes under an image, besides the true one and the one from before
const STEP = 3; // widths of a position are multiples of it: a third stands between maps, and is the width of a dot
const LARGEST = 27; // pixels of a position, to a side, among the maps of a layer

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

const called = (all, key) => all.map((one) => [one[key], one[key]]);
/** Lists whose options, [value, text], depend on the data. The last four are there with a kernel alone. */
const LISTS = {
  class: ({ data }) => [["", "all"], ...data.known.map((label) => [String(label), data.classes[label]])],
  method: ({ data }) => [["", data.attributions.length ? "none" : "none computed"], ...called(data.attributions, "method")],
  outcome: ({ data }) => [["", "the model's own"], ...called(data.outcomes, "name")],
  positions: ({ data }) => called(data.positions, "method"),
  kind: ({ abilities }) => Object.entries(abilities.interventions).map(([key, text]) => [key, `${key}: ${text}`]),
  where: ({ layer }) => [["all", "all layers"], ["layer", layer.name]],
  spot: ({ abilities, layer }) => abilities.positions[layer.name].map((name, place) => [String(place), name]),
  compute: ({ abilities }) => Object.entries(abilities.methods),
};
/** When a control is of no use. */
const IDLE = {
  right: ({ data }) => !data.known.length,
  noB: ({ state }) => state.b < 0,
  mode: ({ attribution }) => !attribution,
  opacity: ({ attribution }) => !attribution,
  previous: ({ state }) => state.page === 0,
  next: ({ state, pages }) => state.page === pages - 1,
  spot: ({ abilities, ui }) => !abilities.of_a_position.includes(ui.kind.value),
  run: ({ working }) => working,
  explain: ({ working }) => working,
  upload: ({ abilities, working }) => working || !abilities.uploads,
};

// ---------------------------------------------------------------------------------------------------------- packs

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(raw.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, start)));
  for (const array of Object.values(header.arrays)) array.data = read(array, raw, start + array.offset);
  return header;
}

function read({ dtype, shape, low, step }, raw, start) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (dtype === "float32") return new Float32Array(raw.buffer, start, count);
  const codes = raw.subarray(start, start + count);
  if (dtype === "uint8") return codes;
  const highs = dtype === "code16" ? raw.subarray(start + count, start + 2 * count) : null;
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 1) values[i] = low + step * (highs ? codes[i] | (highs[i] << 8) : codes[i]);
  return values;
}

/** All that the packs hold, and what follows from it by sums. Maps are (positions, channels), position by position. */
class Data {
  constructor(packs) {
    const of = (kind) => packs.filter((pack) => pack.kind === kind);
    Object.assign(this, of("view")[0]); // title, layers, names, about, pictures, labels, right, predictions, classes, arrays
    [this.outcomes, this.attributions, this.positions] = ["outcome", "attribution", "positions"].map(of);
    for (const layer of this.layers) layer.positions = layer.kernel[0] * layer.kernel[1];
    this.known = [...new Set(this.labels)].filter((label) => label >= 0).sort((x, y) => x - y);
    const colors = ({ data: { buffer, byteOffset } }) => new Uint32Array(buffer, byteOffset, 256);
    this.colors = { sequential: colors(this.arrays.sequential), diverging: colors(this.arrays.diverging) };
    this.looks = new Map();
  }

  /** The maps of an image in a layer, their mean (positions), and each channel's entropy relative to the even map's. */
  look(layer, { image, outcome }) {
    const key = `${layer.name} ${image} ${outcome?.name}`;
    if (this.looks.has(key)) return this.looks.get(key);
    const { shape, data } = (outcome ?? this).arrays[`attention/${layer.name}`], { channels, positions } = layer;
    const first = shape[0] === 1 ? 0 : image * positions * channels, unit = Math.log(positions) || 1;
    const maps = data.subarray(first, first + positions * channels), mean = new Float32Array(positions);
    const entropies = new Float32Array(channels).fill(positions === 1 ? 1 : 0);
    for (let p = 0, index = 0; p < positions; p += 1) {
      for (let c = 0; c < channels; c += 1, index += 1) {
        mean[p] += maps[index] / channels;
        if (maps[index] > 0) entropies[c] -= maps[index] * Math.log(maps[index]) / unit;
      }
    }
    const entropy = entropies.reduce((sum, value) => sum + value / channels, 0);
    this.looks.set(key, { maps, mean, entropies, entropy });
    return this.looks.get(key);
  }

  /** An image's row of an array whose first axis is the images; undefined if there is no such array, or no row. */
  row(array, image) {
    const size = array?.data.length / array?.shape[0];
    return image < array?.shape[0] ? array.data.subarray(image * size, (image + 1) * size) : undefined;
  }
}

/** The map of one channel out of those of a layer. */
const pick = (layer, maps, channel) => Float32Array.from({ length: layer.positions }, (_, p) => maps[p * layer.channels + channel]);

/** Total variation distance between two maps, channel by channel. */
function distances(layer, a, b) {
  const sums = new Float32Array(layer.channels);
  a.forEach((value, index) => { sums[index % layer.channels] += Math.abs(value - b[index]) / 2; });
  return sums;
}

function correlation(x, y) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length, [a, b] = [mean(x), mean(y)];
  const sum = (f) => x.reduce((total, _, i) => total + f(x[i] - a, y[i] - b), 0);
  return sum((u, v) => u * v) / (Math.sqrt(sum((u) => u * u) * sum((_, v) => v * v)) || 1);
}

// -------------------------------------------------------------------------------------------------------- drawing

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter(Boolean));
  return element;
}

/** Give an element new children, if what they are made of is not what it was. */
function renew(element, of, make) {
  const made = JSON.stringify(of);
  if (element.dataset.made === made) return false;
  element.dataset.made = made;
  element.replaceChildren(...make());
  return true;
}

function fill(select, options) {
  const { value } = select, make = () => options.map(([key, text]) => h("option", { value: key }, text));
  if (renew(select, options, make)) select.disabled = options.length < 2;
  choose(select, value);
}

function choose(control, value) {
  control.value = value;
  if (control.selectedIndex < 0) control.selectedIndex = 0;
}

const whole = (value, low, high) => (Number.isFinite(Number(value)) ? Math.max(low, Math.min(high, Math.trunc(value))) : low);
const fixed = (value, digits = 4) => value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 4) => (value > 0 ? "+" : "") + fixed(value, digits);
const brief = (value, digits = 3) => (value > 0 ? "+" : "") + String(Number(value.toPrecision(digits))).replace("-", "−");
const shade = (value, { low, high }) => Math.max(0, Math.min(255, Math.round(255 * (value - low) / (high - low))));
const css = (color) => `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;
const place = (layer, p) => `row ${Math.floor(p / layer.kernel[1]) + 1}, column ${(p % layer.kernel[1]) + 1}`;

/** Colours that reach equally far to both sides of a middle: as far as the values do, and `least` at least. */
function around(middle, values, least) {
  const reach = values.reduce((most, value) => Math.max(most, Math.abs(value - middle)), least);
  return { low: middle - reach, high: middle + reach, middle };
}

/** Sizes of a drawing {kernel, maps, columns, unit, low, high}: maps beside and below each other, a position `unit` wide. */
function sizes({ kernel, maps, columns, unit }) {
  const gap = unit / STEP, [tall, wide] = kernel.map((side) => unit * side + gap);
  return { gap, tall, wide, width: Math.min(columns, maps.length) * wide - gap, height: Math.ceil(maps.length / columns) * tall - gap };
}

/** Call visit(color, left, top, strong) for each position of each map. */
function visitPositions(drawing, colors, visit) {
  const { kernel, maps, columns, unit, low, high } = drawing, { tall, wide } = sizes(drawing);
  maps.forEach((values, slot) => values.forEach((value, p) => {
    const left = (slot % columns) * wide + (p % kernel[1]) * unit;
    const top = Math.floor(slot / columns) * tall + Math.floor(p / kernel[1]) * unit;
    visit(colors[shade(value, drawing)], left, top, value >= (3 * high + low) / 4);
  }));
}

// Both ways put a dot in the strongest: both ends of the colours look alike in grey.

/** Many maps, as pixels of a canvas. */
function paint(canvas, drawing, colors) {
  const { gap, width, height } = sizes(drawing), { unit } = drawing, image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  visitPositions(drawing, colors, (color, left, top, strong) => {
    for (let row = 0, at = top * width + left; row < unit; row += 1, at += width) {
      pixels.fill(color, at, at + unit);
      if (strong && row >= gap && row < 2 * gap) pixels.fill(0xff000000, at + gap, at + 2 * gap);
    }
  });
  Object.assign(canvas, { drawing, width, height }); // the drawing is for who points at it, or saves it
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** One small map, as backgrounds of an element: a canvas for each would be a layer of the page for each. */
function tint(element, { kernel }, map, unit, scale, colors) {
  const drawing = { kernel, maps: [map], columns: 1, unit, ...scale }, { gap, width, height } = sizes(drawing), dots = [], squares = [];
  const square = (color, x, y, side) => `linear-gradient(${color} 0 0) ${x}px ${y}px / ${side}px ${side}px no-repeat`;
  visitPositions(drawing, colors, (color, left, top, strong) => {
    squares.push(square(css(color), left, top, unit));
    if (strong) dots.push(square("#000", left + gap, top + gap, gap));
  });
  element.drawing = drawing;
  element.style = `width: ${width}px; height: ${height}px; background: ${[...dots, ...squares]}`;
  return element;
}

/** The largest width of a position with which a map is at most so wide. */
const unitFor = ({ kernel }, side) => STEP * Math.max(1, Math.floor(side / STEP / Math.max(...kernel)));

/** A frame around pixels of a canvas, to lie above it. */
function box({ width, height }, className, x, y, wide, tall) {
  const [left, top, right, bottom] = [x / width, y / height, 1 - (x + wide) / width, 1 - (y + tall) / height];
  return h("i", { className, style: `inset: ${[top, right, bottom, left].map((share) => `${100 * share}%`).join(" ")}` });
}

/** The pixel of a canvas that the pointer is at, as column and row. */
const under = ({ target, offsetX, offsetY }) =>
  [offsetX * target.width / target.clientWidth, offsetY * target.height / target.clientHeight].map(Math.floor);

/** What the colours mean: the ends and the middle of a scale. */
function legend({ low, high, middle, write, about = "" }) {
  const ramp = Float32Array.from({ length: 61 }, (_, i) => low + (high - low) * i / 60);
  const drawing = { kernel: [1, 61], maps: [ramp], columns: 1, unit: STEP, low, high };
  return [Object.assign(h("i"), { drawing }), h("span", {}, write(low)), h("span", {}, middle ? `1/${Math.round(1 / middle)}` : "0"),
    h("span", {}, write(high)), h("em", {}, about)];
}

/** What is under the pointer, in words and numbers. */
const report = (output, title, line, more = "") => output.replaceChildren(h("b", {}, title), line, h("small", {}, more));

// ------------------------------------------------------------------------------------------------------- explorer

class Explorer {
  /** `host` says where it stands: state (what is chosen at first), keep(state), kernel ({ask, abilities} or null). */
  constructor(root, host) {
    Object.assign(this, { root, host, abilities: host.kernel?.abilities, form: root.querySelector("form") });
    this.state = { ...START, ...host.state };
    this.cursor = { slot: 0, position: 0 }; // among the maps
    this.pixel = [0, 0]; // of the attribution, column and row
    root.classList.add("kaviz-explorer");
    root.querySelector(host.kernel ? ".kv-no-kernel" : ".kv-kernel").remove();
    this.ui = {};
    for (const element of root.querySelectorAll("[data-part], [name]")) this.ui[element.dataset.part ?? element.name] = element;
    this.loads = 0;
    this.ui.copy.hidden = !host.link;
    this.listen();
    this.observer = new ResizeObserver(() => this.data && this.width !== this.ui.grids.firstElementChild.clientWidth && this.draw());
    this.observer.observe(this.ui.grids);
  }

  listen() {
    const { form, ui } = this;
    form.onsubmit = (event) => event.preventDefault();
    form.oninput = ({ target }) => {
      if (target.name in START) this.set({ [target.name]: target.value });
      else if (target === ui.files) this.uploadFiles();
      else this.drawControls();
    };
    form.onclick = (event) => {
      const { target, shiftKey, detail } = event, button = target.closest("button"), { act, of } = button?.dataset ?? {};
      if (act) this[act](of);
      else if (button?.name) this.set({ [button.name]: button.value });
      if (target.name !== "a" || !detail || !(shiftKey || ui.pick.value === "b")) return; // no detail: by the arrows
      event.preventDefault(); // A stays what it is
      setTimeout(() => this.set({ b: target.value })); // once the browser has put it back
    };
    form.onkeydown = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      event.stopPropagation(); // JupyterLab has keys of its own
      const { keys } = event.target.closest("[data-keys]")?.dataset ?? {};
      if ((keys && this[keys](event)) || this.onRadioKey(event)) event.preventDefault();
    };
    ui.grids.onpointermove = (event) => this.point(event);
    ui.grids.onclick = (event) => this.point(event) && this.pin();
    ui.pair.onpointermove = (event) => event.target.matches("canvas") && this.readPixel(...under(event));
    ui.panels.onpointerover = ({ target }) => target.matches("td") && this.move({ position: Number(target.dataset.position) });
  }

  /** Home and End among radio buttons; the browser knows the arrows. */
  onRadioKey({ key, target: { type, name } }) {
    if (type !== "radio" || !["Home", "End"].includes(key)) return false;
    const radio = [...this.form.querySelectorAll(`[type=radio][name=${name}]`)].filter((one) => one.offsetParent).at(key === "Home" ? 0 : -1);
    radio.focus();
    radio.click();
    return true;
  }

  /** Show what the packs hold, or say why not. */
  async open(packs) {
    await this.load(packs).catch(({ message }) => this.tell(`Cannot show this view: ${message}`, true));
    this.form.hidden = false;
  }

  async load(contents) {
    const before = this.data?.names.length, data = new Data(await Promise.all(contents.map(unpack)));
    const pictures = data.pictures.map((src) => h("img", { src, alt: "", draggable: false, decoding: "sync" }));
    await Promise.allSettled(pictures.map((picture) => picture.decode())); // then their sizes are known
    Object.assign(this, { data, pictures, loads: this.loads + 1 }); // not before all can be drawn
    if (before && before < data.names.length) Object.assign(this.state, { a: before, class: "", right: "", find: "" });
    const stops = Array.from({ length: 17 }, (_, i) => css(data.colors.diverging[Math.min(255, i * 16)]));
    this.root.style.setProperty("--kv-diverging", `linear-gradient(to right, ${stops})`);
    this.form.hidden = false;
    this.makeFilm();
    this.makeLayers();
    this.draw();
    for (const strip of [this.ui.film, this.ui.strip]) { // the chosen ones come into sight
      const { offsetLeft, offsetWidth } = strip.querySelector(":checked").parentElement;
      strip.scrollLeft = offsetLeft - strip.offsetLeft - (strip.clientWidth - offsetWidth) / 2;
    }
    this.root.dataset.ready = "true";
  }

  set(changes) {
    if ("layer" in changes || "sort" in changes) changes = { page: 0, ...changes };
    Object.assign(this.state, changes);
    this.draw();
    this.keeping ??= requestAnimationFrame(() => setTimeout(() => { // once it can be seen: this takes as long as drawing
      this.keeping = null;
      this.host.keep(Object.fromEntries(Object.entries(this.state).filter(([name, value]) => value !== START[name])));
    }));
  }

  show(state) {
    this.state = { ...START, ...state };
    this.draw();
  }

  // What is chosen, made good where it is not there (an address may say anything).
  settle() {
    const { state, data } = this, last = data.names.length - 1;
    [state.a, state.b, state.opacity] = [whole(state.a, 0, last), whole(state.b, -1, last), whole(state.opacity, 0, 100)];
    this.layer = data.layers.find(({ name }) => name === state.layer) ?? data.layers[0];
    state.layer = this.layer.name;
    if (![...this.ui.sort.options].some(({ value }) => value === state.sort)) state.sort = START.sort;
    this.outcome = data.outcomes.find(({ name }) => name === state.outcome) ?? null;
    this.attribution = data.attributions.find(({ method }) => method === state.method) ?? null;
    this.position = data.positions.find(({ method }) => method === state.positions) ?? data.positions[0] ?? null;
    this.first = { name: "A", image: state.a, outcome: this.outcome };
    this.second = state.b >= 0 ? { name: "B", image: state.b, outcome: this.outcome }
      : this.outcome ? { name: "A before", image: state.a, outcome: null } : null;
    this.pictured = state.b >= 0 ? [this.first, this.second] : [this.first];
    this.shares = data.arrays[`share/${this.layer.name}`];
    if ((state.sort === "difference" && !this.second) || (state.sort === "share" && !this.shares)) state.sort = "dependence";
    this.pins = state.pins.split(" ").flatMap((key) => {
      const at = key.lastIndexOf(":"), layer = data.layers.find(({ name }) => name === key.slice(0, at));
      const channel = Number(key.slice(at + 1));
      return layer && channel >= 0 && channel < layer.channels ? [{ key, layer, channel }] : [];
    });
  }

  draw() {
    const { ui } = this;
    this.settle();
    ui.grids.classList.toggle("kv-one", !this.second);
    this.width = ui.grids.firstElementChild.clientWidth; // before anything is changed: after it the page would be laid out again
    this.arrange();
    this.drawControls();
    this.drawFilm();
    this.drawLayers();
    this.drawImages();
    this.drawMaps();
    this.drawPins();
    this.drawPositions();
    this.say();
  }

  drawControls() {
    const { data, state, ui } = this, n = data.names.length, wrong = data.right.filter((right) => right === false).length;
    ui.heading.textContent = data.title;
    this.summary = `${n} image${n === 1 ? "" : "s"}, ${data.layers.length} layers${data.known.length ? `, ${wrong} wrong` : ""}`;
    if (!this.message) ui.status.textContent = this.summary;
    for (const [name, options] of Object.entries(LISTS)) if (ui[name]) fill(ui[name], options(this));
    for (const [name, value] of Object.entries(state)) if (ui[name] && ui[name].value !== String(value)) choose(ui[name], value);
    const [, , difference, share] = ui.sort.options;
    [difference.disabled, share.disabled] = [!this.second, !this.shares];
    for (const [name, test] of Object.entries(IDLE)) if (ui[name]) ui[name].disabled = test(this);
    const [attention, sorted] = [ui.outcome, ui.sort].map(({ selectedOptions: [{ text }] }) => text);
    ui.chosen.textContent = `${this.layer.name} · attention: ${attention} · sorted by ${sorted}`;
  }

  // -- the images in a row

  makeFilm() {
    const { data } = this;
    this.ui.film.replaceChildren(...data.names.map((name, image) => h("label", { className: "kv-frame", title: data.about[image] },
      h("input", { type: "radio", name: "a", value: image }),
      h("span", { className: "kv-thumb" }, this.pictures[image] ?? "—"),
      h("span", { className: "kv-name" }, data.right[image] === null ? name : `${data.right[image] ? "✓" : "✗"} ${name}`))));
  }

  drawFilm() {
    const { data, state, ui } = this, find = state.find.toLowerCase();
    const fits = (image) => (state.class === "" || String(data.labels[image]) === state.class)
      && (state.right === "" || data.right[image] === (state.right === "right")) && data.names[image].toLowerCase().includes(find);
    this.inFilm = [...data.names.keys()].filter(fits);
    [...ui.film.children].forEach((frame, image) => {
      frame.hidden = !fits(image);
      frame.firstChild.checked = image === state.a;
      frame.classList.toggle("kv-b", image === state.b);
    });
    ui.filmNote.textContent = this.inFilm.length === data.names.length
      ? "Click for A, shift-click for B. Keys: arrows for A, with Shift for B, Delete for no B."
      : `${this.inFilm.length} of ${data.names.length} images`;
  }

  /** What the arrows alone do, the browser knows. */
  onFilmKey({ key, shiftKey }) {
    const { inFilm, state } = this, [step] = ARROWS[key] ?? [];
    const image = inFilm[inFilm.indexOf(state.b < 0 ? state.a : state.b) + step];
    if (key === "Delete" || key === "Backspace") this.set({ b: -1 });
    else if (shiftKey && image !== undefined) {
      this.set({ b: image });
      this.ui.film.children[image].scrollIntoView({ block: "nearest", inline: "nearest" });
    } else return shiftKey && step;
    return true;
  }

  // -- the layers in a row

  makeLayers() {
    const whole = this.data.layers.map(({ name }) => name);
    const short = whole.map((name) => name.replace(/\.(conv\d?|0)?(\.\d)?$/, ""));
    const shown = new Set(short).size === whole.length ? short : whole; // "down.0.0" and "down.0.3" would be one
    this.ui.strip.replaceChildren(...this.data.layers.map(({ name, kernel, channels }, number) => h("label",
      { className: "kv-layer", title: `${name}: ${kernel.join("×")}, ${channels} channels` },
      h("input", { type: "radio", name: "layer", value: name }), h("i", { className: "kv-map" }),
      h("span", { className: "kv-name" }, shown[number]),
      h("span", { className: "kv-meter" }, h("i")), h("span", { className: "kv-number" }))));
  }

  drawLayers() {
    const { data, ui, layer: chosen } = this;
    data.layers.forEach((layer, number) => {
      const [radio, map, , meter, note] = ui.strip.children[number].children;
      const { mean, entropy } = data.look(layer, this.first), even = 1 / layer.positions;
      radio.checked = layer === chosen;
      tint(map, layer, mean, unitFor(layer, 48), around(even, mean, even / 100), data.colors.diverging);
      meter.firstChild.style.width = `${100 * Math.max(0, Math.min(1, entropy))}%`;
      note.textContent = entropy.toFixed(2);
      radio.setAttribute("aria-label", `${layer.name}, ${layer.channels} channels, mean entropy ${note.textContent}`);
    });
  }

  // -- images, attributions, predictions

  drawImages() {
    const { data, state, attribution, pictured, ui } = this;
    [...ui.pair.children].forEach((figure, number) => {
      figure.hidden = !pictured[number];
      if (pictured[number]) this.drawImage(figure, pictured[number]);
    });
    ui.attributionNote.hidden = ui.pixelReadout.hidden = !attribution;
    if (!attribution) return;
    ui.attributionNote.textContent = `What speaks for ${attribution.about}: `
      + (state.mode === "signed" ? "red for it, blue against it." : "yellow is strong, either way.");
    this.readPixel(...this.pixel);
  }

  drawImage(figure, { name, image }) {
    const { data, attribution, loads } = this, [caption, picture, bars] = figure.children, [holder, overlay] = picture.children;
    caption.replaceChildren(h("b", {}, name), ` ${data.about[image]}`);
    renew(holder, [image, loads], () => {
      const shown = this.pictures[image]?.cloneNode() ?? h("span", {}, "—"), { naturalWidth: wide = 1, naturalHeight: tall = 1 } = shown;
      picture.style.aspectRatio = `${wide} / ${tall}`;
      picture.style.width = `${260 * Math.min(1, wide / tall)}px`;
      return [Object.assign(shown, { alt: data.about[image], className: wide < 80 ? "kv-pixels" : "" })];
    });
    const percent = data.row(attribution?.arrays.percent, image);
    overlay.hidden = !percent;
    if (percent) this.paintAttribution(overlay, percent);
    overlay.setAttribute("aria-label", `${attribution?.method} of ${name}: ${data.about[image]}`);
    const ranking = this.ranking(image);
    renew(bars, ranking, () => ranking.map(({ title, text, now, before }) => h("li", {},
      h("span", { className: "kv-class", title }, title), h("span", { className: "kv-value" }, text),
      h("span", { className: "kv-bar" }, h("i", { style: `width: ${100 * now}%` }),
        before !== undefined && h("s", { style: `left: ${100 * before}%` })))));
  }

  paintAttribution(canvas, percent) {
    const { state, data } = this, isSigned = state.mode === "signed", [, rows, columns] = this.attribution.arrays.percent.shape;
    canvas.className = columns <= 16 ? "kv-pixels" : "";
    canvas.style.opacity = `${state.opacity}%`;
    const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    percent.forEach((code, index) => {
      const strength = Math.abs(code - 100) / 100, alpha = isSigned ? Math.round(255 * Math.min(1, 1.5 * strength)) : 255;
      const color = isSigned ? data.colors.diverging[shade(code, { low: 0, high: 200 })] : data.colors.sequential[shade(strength, { low: 0, high: 1 })];
      pixels[index] = (color & 0xffffff) | (alpha << 24);
    });
    [canvas.width, canvas.height] = [columns, rows];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  /** The value of the attribution at a cell, in both images. */
  readPixel(column, row) {
    const { percent, scale } = this.attribution.arrays, [, rows, columns] = percent.shape, { pair, pixelReadout } = this.ui;
    this.pixel = [whole(column, 0, columns - 1), whole(row, 0, rows - 1)];
    const [x, y] = this.pixel, values = this.pictured.map(({ name, image }) => {
      const code = this.data.row(percent, image)?.[y * columns + x] - 100;
      return Number.isNaN(code) ? `${name}: not computed` : `${name} ${brief(code)} % of the image's strongest, ${brief(code * scale.data[image] / 100)}`;
    });
    report(pixelReadout, `row ${y + 1}, column ${x + 1} of ${rows} × ${columns}`, values.join(" · "), "to ±0.5 % of the strongest");
    pair.querySelectorAll("canvas").forEach((canvas) => canvas.nextElementSibling.replaceChildren(box(canvas, "kv-cursor", x, y, 1, 1)));
  }

  onPixelKey({ key }) {
    const by = ARROWS[key];
    if (by) this.readPixel(this.pixel[0] + by[0], this.pixel[1] + by[1]);
    return Boolean(by);
  }

  /** The likeliest classes, the true one and the one from before: {title, text, now, before}. */
  ranking(image) {
    const { data, outcome } = this, now = data.row((outcome ?? data).arrays.probabilities, image);
    if (!now) return data.classes[data.predictions[image]] ? [{ title: data.classes[data.predictions[image]], text: "predicted", now: 0 }] : [];
    const before = outcome && data.row(data.arrays.probabilities, image);
    const best = [...now.keys()].sort((x, y) => now[y] - now[x]).slice(0, LINES);
    const also = [data.labels[image], before ? before.indexOf(Math.max(...before)) : -1].filter((index) => index >= 0);
    return [...new Set([...best, ...also])].map((index) => ({
      title: data.classes[index], now: now[index], before: before?.[index],
      text: `${index === data.labels[image] ? "✓ true · " : ""}${now[index].toFixed(2)}${before ? ` (before ${before[index].toFixed(2)})` : ""}`,
    }));
  }

  // -- the maps of the channels

  /** Channels in the chosen order. */
  order() {
    const { data, layer, state, first } = this, channels = [...Array(layer.channels).keys()];
    const by = {
      number: () => channels.map(() => 0),
      dependence: () => data.arrays[`dependence/${layer.name}`].data,
      entropy: () => data.look(layer, first).entropies.map((entropy) => -entropy),
      share: () => data.row(this.shares, first.image),
      difference: () => this.distances, // settle() has seen to it that there are two
    }[state.sort]();
    return channels.sort((x, y) => by[y] - by[x] || x - y);
  }

  scaleOf(layer) {
    const even = 1 / layer.positions;
    const farthest = Math.max(...(this.state.scale === "all" ? this.data.layers : [layer]).map(({ name, positions }) => {
      const { low, high } = this.data.arrays[`attention/${name}`];
      return Math.max(1 - low * positions, high * positions - 1);
    }));
    const reach = even * (Math.min(1, farthest) || 0.01); // no attention is less than none
    const about = farthest > 1 ? `attention, at most ${fixed(even * (1 + farthest), 3)}` : "attention";
    return { low: even - reach, high: even + reach, middle: even, about, write: (value) => fixed(value, 3) };
  }

  /** The largest maps with which all channels find room, or else the smallest that can be seen. */
  fit(height) {
    const { kernel, channels } = this.layer, least = STEP * Math.ceil(16 / STEP / Math.max(...kernel));
    const fit = (unit) => {
      const [down, across] = kernel.map((side) => unit * (side + 1 / STEP));
      const columns = Math.max(1, Math.floor(this.width / across));
      return { unit, columns, room: columns * Math.max(1, Math.floor(height / down)) };
    };
    let place = fit(LARGEST);
    while (place.room < channels && place.unit > least) place = fit(place.unit - STEP);
    return place;
  }

  /** What there is to draw of the maps: `grids` for A, B and their difference, and the channels that have a slot in each. */
  arrange() {
    const { data, layer, state, first, second, cursor } = this, a = data.look(layer, first).maps;
    const grid = (who, maps) => ({ name: who.name, title: `${who.name}: ${data.names[who.image]}`, maps, ...this.scaleOf(layer) });
    this.grids = [grid(first, a)];
    this.distances = null;
    if (second) {
      const b = data.look(layer, second).maps, difference = a.map((value, index) => value - b[index]), title = `${first.name} − ${second.name}`;
      this.grids.push(grid(second, b), { name: title, title, maps: difference, ...around(0, difference, 0.001),
        about: "difference, on its own scale", write: (value) => fixed(value, 3) });
      this.distances = distances(layer, a, b);
    }
    this.place = this.fit(second ? 340 : 300);
    const { room } = this.place;
    this.pages = Math.ceil(layer.channels / room);
    state.page = whole(state.page, 0, this.pages - 1);
    this.slots = this.order().slice(state.page * room, (state.page + 1) * room);
    this.cursor = { slot: whole(cursor.slot, 0, this.slots.length - 1), position: whole(cursor.position, 0, layer.positions - 1) };
  }

  drawMaps() {
    const { layer: { channels }, grids, slots, state: { page }, place: { room }, ui } = this;
    ui.pages.textContent = this.pages === 1 ? `all ${channels}` : `${page * room + 1}–${page * room + slots.length} of ${channels}`;
    [...ui.grids.children].forEach((figure, number) => {
      figure.hidden = !grids[number];
      if (grids[number]) this.drawGrid(figure, grids[number]);
    });
    [ui.previous.value, ui.next.value] = [page - 1, page + 1];
    this.drawBoxes();
  }

  drawGrid(figure, { title, maps, ...scale }) {
    const { data, layer, slots, place: { columns, unit }, ui } = this, [caption, { firstChild: canvas }, bar] = figure.children;
    const of = [layer.name, slots, columns, unit, scale, this.first.image, this.second?.image, this.outcome?.name, this.loads];
    renew(canvas, of, () => { // whose pixels take longer than all else
      const drawing = { kernel: layer.kernel, maps: slots.map((channel) => pick(layer, maps, channel)), columns, unit, ...scale };
      paint(canvas, drawing, data.colors.diverging);
      return [];
    });
    canvas.setAttribute("aria-label", `Maps of ${slots.length} channels of ${layer.name}, ${title}, sorted by ${ui.sort.selectedOptions[0].text}`);
    caption.textContent = title;
    bar.replaceChildren(...legend(scale));
  }

  /** Frames around the maps of pinned channels, and the one that the keys are at. */
  drawBoxes() {
    const { layer, slots, cursor, place: { columns } } = this;
    const pinned = this.pins.filter((pin) => pin.layer === layer).map(({ channel }) => slots.indexOf(channel)).filter((slot) => slot >= 0);
    for (const { firstChild: canvas, lastChild: boxes } of this.ui.grids.querySelectorAll("figure:not([hidden]) .kv-grid")) {
      const { tall, wide, gap } = sizes(canvas.drawing);
      const frame = (slot, kind) => box(canvas, kind, (slot % columns) * wide, Math.floor(slot / columns) * tall, wide - gap, tall - gap);
      boxes.replaceChildren(...pinned.map((slot) => frame(slot, "kv-pinned")), frame(cursor.slot, "kv-cursor"));
    }
  }

  /** Move to the channel and position under the pointer; false between two maps. */
  point(event) {
    if (!event.target.matches("canvas")) return false;
    const { kernel, maps, columns, unit } = event.target.drawing, [x, y] = under(event), { tall, wide } = sizes(event.target.drawing);
    const slot = Math.floor(y / tall) * columns + Math.floor(x / wide), row = Math.floor((y % tall) / unit), column = Math.floor((x % wide) / unit);
    if (slot >= maps.length || row >= kernel[0] || column >= kernel[1]) return false;
    this.move({ slot, position: row * kernel[1] + column });
    return true;
  }

  move(cursor) {
    Object.assign(this.cursor, cursor);
    this.drawBoxes();
    this.say();
  }

  onGridKey({ key }) {
    const { cursor, slots, state, place: { columns } } = this, [across, down] = ARROWS[key] ?? [0, 0];
    const next = cursor.slot + across + down * columns;
    if (next < 0 || next >= slots.length) this.set({ page: state.page + Math.sign(next) });
    else if (next !== cursor.slot) this.move({ slot: next });
    else if (key === "Enter" || key === " ") this.pin();
    else return this.onPositionKey({ key });
    return true;
  }

  /** What is under the pointer, in words and numbers. */
  say() {
    const { data, layer, cursor: { slot, position }, first, grids, outcome } = this, channel = this.slots[slot];
    const values = grids.map(({ maps }) => maps[position * layer.channels + channel]);
    const [own, other, difference] = grids.map(({ name, middle }, number) => `${name} ${middle ? fixed(values[number]) : signed(values[number])}`);
    const share = data.row(this.shares, first.image)?.[channel], { step } = (outcome ?? data).arrays[`attention/${layer.name}`];
    const about = [`input dependence ${data.arrays[`dependence/${layer.name}`].data[channel].toFixed(3)}`,
      `entropy ${data.look(layer, first).entropies[channel].toFixed(3)}`, this.distances && `difference ${this.distances[channel].toFixed(3)}`,
      share !== undefined && `share ${(100 * share).toFixed(2)} %`, `attention to ±${(step / 2).toPrecision(1)}`];
    report(this.ui.readout, `${layer.name} · channel ${channel} · ${place(layer, position)}`,
      [`${own} = ${fixed(values[0] * layer.positions, 2)} × 1/${layer.positions}`, other, difference].filter(Boolean).join(" · "),
      about.filter(Boolean).join(" · "));
    this.sayPosition();
  }

  // -- pinned channels

  pin() { this.togglePin(`${this.layer.name}:${this.slots[this.cursor.slot]}`); }

  togglePin(key) {
    const keys = this.pins.map((pin) => pin.key);
    this.set({ pins: (keys.includes(key) ? keys.filter((one) => one !== key) : [...keys, key]).join(" ") });
    if (document.activeElement !== document.body) return;
    (this.ui.pinList.querySelector("button") ?? this.ui.grids.querySelector("canvas")).focus(); // the button that was pressed is gone
  }

  drawPins() {
    const { pins, ui: { pinList } } = this;
    pinList.parentElement.hidden = !pins.length;
    const there = Object.fromEntries([...pinList.children].map((item) => [item.dataset.key, item]));
    renew(pinList, pins.map(({ key }) => key), () => pins.map(({ key, layer, channel }) => there[key] ?? h("li", { "data-key": key },
      h("div", { className: "kv-pin-head" },
        h("button", { type: "button", className: "kv-plain", name: "layer", value: layer.name }, `${layer.name} · channel ${channel}`),
        h("button", { type: "button", "data-act": "togglePin", "data-of": key, "aria-label": `Unpin ${layer.name}, channel ${channel}` }, "Unpin")),
      h("div", { className: "kv-pin-maps" }, h("div"), h("div")))));
    pins.forEach((pin, number) => this.drawPin(pin, ...pinList.children[number].lastChild.children));
  }

  /** The maps of a pinned channel in A, in B, their difference, and in the images of the film. */
  drawPin({ layer, channel }, chosen, others) {
    const { data, first, second, outcome, loads } = this, scale = this.scaleOf(layer), side = unitFor(layer, 42);
    const map = (who) => pick(layer, data.look(layer, who).maps, channel);
    const figure = (title, values, fit = scale, unit = side) => {
      const words = `${title}: ${[...values].map((value) => fixed(value)).join("  ")}`;
      const element = h("i", { className: "kv-map", role: "img", title: words, "aria-label": words });
      return h("figure", {}, h("figcaption", {}, title), tint(element, layer, values, unit, fit, data.colors.diverging));
    };
    renew(chosen, [first.image, second?.name, second?.image, outcome?.name, scale, loads], () => {
      const a = map(first), figures = [figure(first.name, a)];
      if (!second) return figures;
      const b = map(second), difference = a.map((value, p) => value - b[p]);
      return [...figures, figure(second.name, b), figure("difference", difference, around(0, difference, 0.001))];
    });
    const images = this.inFilm.slice(0, PINNED_IMAGES), smaller = STEP * Math.ceil(side / STEP / 2);
    renew(others, [images, outcome?.name, scale, loads], () => [h("p", { className: "kv-note" }, `in ${images.length} of the images`),
      ...images.map((image) => figure(data.names[image], map({ image, outcome }), scale, smaller))]);
  }

  // -- kernel positions: attention beside what is used

  drawPositions() {
    const { data, layer, position, pictured, ui } = this, even = 1 / layer.positions;
    const means = pictured.map((who) => data.look(layer, who).mean);
    const used = pictured.map(({ image }) => data.row(position?.arrays[`values/${layer.name}`], image));
    const attention = around(even, means.flatMap((mean) => [...mean]), even / 100);
    const contribution = around(0, used.flatMap((values) => [...values ?? []]), 1e-12);
    this.panels = pictured.flatMap(({ name }, number) => [
      { title: `${name}: attention, mean of the channels`, maps: [means[number]], write: (value) => fixed(value, 3), ...attention },
      used[number] && { title: `${name}: ${position.method}`, maps: [used[number]], write: (value) => brief(value, 2), ...contribution },
    ].filter(Boolean));
    renew(ui.panels, [this.panels, layer.name], () => this.panels.map((panel) => this.panel(panel)));
    ui.positions.closest(".kv-controls").hidden = !position;
    ui.positionNote.textContent = !position ? "This view has no position attributions: what a position is given is shown, not what is made of it."
      : !used[0] ? `${position.method} has no values for this layer, or for A.`
        : `Contribution to ${position.about}. Attention and contribution of A correlate by ${signed(correlation(means[0], used[0]), 2)}. ${position.note}`;
  }

  panel(drawing) {
    const { layer: { kernel }, data } = this, { title, maps: [values], write } = drawing;
    const cell = (p) => {
      const level = shade(values[p], drawing), ink = Math.abs(level - 127.5) < 70 ? "#111" : "#fff";
      return h("td", { style: `background: ${css(data.colors.diverging[level])}; color: ${ink}`, "data-position": p }, write(values[p]));
    };
    const rows = Array.from({ length: kernel[0] }, (_, row) =>
      h("tr", {}, ...Array.from({ length: kernel[1] }, (_, column) => cell(row * kernel[1] + column))));
    return h("figure", {}, h("figcaption", {}, title), h("table", { "aria-label": title }, h("tbody", {}, ...rows)),
      h("div", { className: "kv-scale" }, ...legend(drawing)));
  }

  onPositionKey({ key }) {
    const { positions } = this.layer, by = { "[": positions - 1, "]": 1 }[key];
    if (by) this.move({ position: (this.cursor.position + by) % positions });
    return Boolean(by);
  }

  sayPosition() {
    const { layer, cursor: { position }, panels = [], ui } = this;
    ui.panels.querySelectorAll("td").forEach((cell) => cell.classList.toggle("kv-at", Number(cell.dataset.position) === position));
    report(ui.positionReadout, `${layer.name} · ${place(layer, position)}`, panels.map(({ title, maps: [values], middle }) =>
      `${title} ${middle ? fixed(values[position], 5) : brief(values[position], 6)}`).join(" · "));
  }

  // -- the kernel

  /** Ask for "intervene", "attribute", "upload" or "cancel", with what is chosen for each. */
  ask(what, more = {}, buffers = []) {
    const { kind, where, spot, compute } = this.ui, layers = where.value === "layer" ? this.layer.name : "*";
    if (what !== "cancel") {
      this.tell("");
      this.busy(true, "asked …", 0, 1);
    }
    const chosen = { kind: kind.value, layers, position: Number(spot.value), donor: this.state.b, method: compute.value };
    this.host.kernel.ask({ ask: what, ...chosen, ...more }, buffers);
  }

  chooseFiles() { this.ui.files.click(); }

  async uploadFiles() {
    const files = [...this.ui.files.files], contents = await Promise.all(files.map((file) => file.arrayBuffer()));
    this.ui.files.value = ""; // so that the same file can be given again
    if (files.length) this.ask("upload", { names: files.map(({ name }) => name) }, contents);
  }

  busy(working, text, value, max) {
    const { work } = this.ui, [progress, note] = work.children;
    work.hidden = !working;
    note.textContent = text;
    Object.assign(progress, { value, max });
    this.working = working;
    this.drawControls();
  }

  /** What the kernel says. */
  heard({ say, what, done, of, text, show }) {
    this.busy(say === "progress", `${what}: ${done} of ${of}`, done ?? 0, of ?? 1);
    if (say === "progress") return;
    this.tell(text, say === "error");
    if (show) this.set(show);
  }

  tell(text, wrong = false) {
    const { status } = this.ui;
    this.message = text;
    status.textContent = text || this.summary;
    status.setAttribute("role", wrong ? "alert" : "status");
    status.classList.toggle("kv-wrong", wrong);
  }

  // -- saving

  async copyLink() {
    const address = this.host.link(), copied = await navigator.clipboard?.writeText(address).then(() => true, () => false);
    this.tell(copied ? "The address of this view is copied." : `The address of this view: ${address}`);
  }

  async save(kind) {
    const names = [this.layer.name, ...this.pictured.map(({ image }) => this.data.names[image])];
    const download = `${names.join("-").replace(/[^\w.-]+/g, "_").slice(0, 90)}.${kind}`;
    try {
      const url = URL.createObjectURL(await this[`make_${kind}`]());
      h("a", { href: url, download }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      this.tell(`Saved as ${download}`);
    } catch (error) {
      this.tell(`Cannot save: ${error.message}`, true);
    }
  }

  make_svg() { return new Blob([svgOf(this.root, this.data.colors.diverging)], { type: "image/svg+xml" }); }

  async make_png() {
    const picture = h("img", { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgOf(this.root, this.data.colors.diverging))}` });
    await picture.decode();
    const canvas = h("canvas", { width: 2 * picture.naturalWidth, height: 2 * picture.naturalHeight });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  }

  /** All numbers of the view: {name, of, quantity, layer, axes, shape, values}. */
  numbers() {
    const { data, layer, first, second, attribution, position } = this;
    return [first, second].filter(Boolean).flatMap((who) => {
      const of = who.name, cells = data.row(attribution?.arrays.percent, who.image), used = data.row(position?.arrays[`values/${layer.name}`], who.image);
      const probabilities = data.row((who.outcome ?? data).arrays.probabilities, who.image), { scale, percent } = attribution?.arrays ?? {};
      const values = cells && Float32Array.from(cells, (code) => (code - 100) * scale.data[who.image] / 100);
      return [
        { quantity: "attention", layer: layer.name, axes: ["row", "column", "channel"], shape: [...layer.kernel, layer.channels], values: data.look(layer, who).maps },
        { quantity: "probability", axes: ["class"], shape: [probabilities?.length], values: probabilities },
        { quantity: "attribution", method: attribution?.method, axes: ["row", "column"], shape: percent?.shape.slice(1), values },
        { quantity: "contribution", method: position?.method, layer: layer.name, axes: ["row", "column"], shape: layer.kernel, values: used },
      ].filter((one) => one.values).map((one) => ({ ...one, of, image: data.names[who.image] }));
    });
  }

  make_csv() {
    const { classes } = this.data, columns = ["of", "image", "quantity", "method", "layer", "row", "column", "channel", "class", "value"];
    const quote = (word) => (/[",\n]/.test(word) ? `"${word.replace(/"/g, '""')}"` : word ?? "");
    const lines = this.numbers().flatMap(({ axes, shape, values, ...about }) => Array.from(values, (value, index) => {
      const entry = { ...about, value: String(Number(value.toPrecision(6))) };
      for (let axis = axes.length - 1, rest = index; axis >= 0; rest = Math.floor(rest / shape[axis]), axis -= 1) entry[axes[axis]] = rest % shape[axis];
      if ("class" in entry) entry.class = classes[entry.class];
      return columns.map((name) => quote(entry[name])).join(",");
    }));
    return new Blob([columns.join(","), "\n", lines.join("\n"), "\n"], { type: "text/csv" });
  }

  make_npz() {
    const files = { channel_order: npy(Int32Array.from(this.order()), [this.layer.channels]) };
    for (const { of, quantity, shape, values } of this.numbers()) files[`${quantity}_${of === "A" ? "a" : of === "B" ? "b" : "before"}`] = npy(values, shape);
    if (this.second) files.difference = npy(this.grids[2].maps, [...this.layer.kernel, this.layer.channels]);
    return zip(files);
  }
}

// -------------------------------------------------------------------------------------------------- files of a view

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

/** The view as it is seen, without its controls: pictures are embedded, maps are rectangles, text is text. */
function svgOf(root, colors) {
  const space = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, ...children) => {
    const element = document.createElementNS(space, tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  };
  root.classList.add("kv-still"); // how it looks when it is printed
  const { left, top, width, height } = root.getBoundingClientRect(), svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const within = (at) => ({ x: at.left - left, y: at.top - top, width: at.width, height: at.height });
  const squares = (element, at) => {
    const { drawing } = element, { gap, width: wide, height: tall } = sizes(drawing), { x, y } = at;
    const group = make("g", { transform: `translate(${x} ${y}) scale(${at.width / wide} ${at.height / tall})` });
    const square = (left, top, side, fill) => group.append(make("rect", { x: left, y: top, width: side, height: side, fill }));
    visitPositions(drawing, colors, (color, left, top, strong) => {
      square(left, top, drawing.unit, css(color));
      if (strong && !element.matches(".kv-scale i")) square(left + gap, top + gap, gap, "#000");
    });
    return group;
  };
  for (const element of [root, ...root.querySelectorAll("*")]) {
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element), at = within(element.getBoundingClientRect());
    if (element.drawing) svg.append(squares(element, at));
    else if (element.matches("canvas")) svg.append(make("image", { ...at, href: element.toDataURL(), opacity: style.opacity }));
    else if (element.matches("img")) svg.append(make("image", { ...at, href: element.src }));
    else if (!style.backgroundColor.endsWith(" 0)")) svg.append(make("rect", { ...at, fill: style.backgroundColor }));
    for (const text of [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE)) {
      svg.append(...linesOf(text).map(({ words, at: line }) => make("text", { x: line.left - left, y: line.top - top + 0.8 * line.height,
        "font-family": "system-ui, sans-serif", "font-size": style.fontSize, "font-weight": style.fontWeight, fill: style.color }, words)));
    }
  }
  root.classList.remove("kv-still");
  return new XMLSerializer().serializeToString(svg);
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
    const packed = new Uint8Array(gzip, 10, gzip.byteLength - 18), [checksum, size] = new Uint32Array(gzip.slice(-8));
    // Version, flags, method (deflated), time, date (the first of January 1980); checksum, sizes; lengths of the names.
    const fields = [u16(20, 0, 8, 0, 0x21), u32(checksum, packed.length, size), u16(title.length, 0)];
    local.push(u32(0x04034b50), ...fields, title, packed);
    central.push(u32(0x02014b50), u16(20), ...fields, u16(0, 0, 0), u32(0, offset), title);
    offset += 30 + title.length + packed.length;
  }
  const size = central.reduce((sum, part) => sum + part.length, 0), many = Object.keys(files).length;
  return new Blob([...local, ...central, u32(0x06054b50), u16(0, 0, many, many), u32(size, offset), u16(0)]);
}

// ------------------------------------------------------------------------------------------------------- two homes

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
    "msg:custom": (message) => { loading = loading.then(() => explorer.heard(message)); },
  };
  Object.entries(handlers).forEach(([event, handler]) => model.on(event, handler));
  return () => {
    Object.entries(handlers).forEach(([event, handler]) => model.off(event, handler));
    explorer.observer.disconnect();
    root.remove();
  };
}

/** In a page: the packs stand in it, and what is chosen stands in the address. */
function mount(root, number) {
  const prefix = number ? `#explorer${number + 1}?` : "#explorer?";
  const read = () => (location.hash.startsWith(prefix) ? Object.fromEntries(new URLSearchParams(location.hash.slice(prefix.length))) : null);
  const packs = [...root.querySelectorAll("script")].map(({ textContent }) => Uint8Array.from(atob(textContent.trim()), (sign) => sign.charCodeAt(0)));
  const explorer = new Explorer(root, {
    state: read() ?? JSON.parse(root.dataset.state || "{}"),
    keep: (state) => {
      const address = prefix + new URLSearchParams(state);
      try { history.replaceState(null, "", address); } catch { location.hash = address; }
    },
    link: () => location.href,
  });
  window.addEventListener("hashchange", () => explorer.data && read() && explorer.show(read()));
  explorer.open(packs);
}

document.querySelectorAll("[data-kaviz-explorer]").forEach(mount);

export default { render };
