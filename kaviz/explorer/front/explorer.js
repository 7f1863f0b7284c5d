// The attention explorer: one module for JupyterLab (through anywidget) and for pages without a kernel.
// It draws from packs (kaviz/explorer/views.py says what is in them) and keeps what is chosen in one flat `state`.

const START = {
  a: 0, b: -1, layer: "", sort: "dependence", page: 0, scale: "layer", pins: "", outcome: "",
  method: "", opacity: 70, mode: "signed", positions: "", class: "", right: "", find: "",
};
const SORTS = {
  dependence: "input dependence", entropy: "entropy, sharpest first", difference: "difference of the two",
  share: "share of the output", number: "channel number",
};
const PINNED_IMAGES = 24; // maps of a pinned channel in further images
const LINES = 4; // classes under an image, besides the true one and the one from before
const GAP = 4; // pixels between maps

// ---------------------------------------------------------------------------------------------------------- packs

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const start = 4 + new DataView(raw.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, start)));
  const arrays = {};
  for (const [name, spec] of Object.entries(header.arrays)) {
    const count = spec.shape.reduce((product, size) => product * size, 1);
    const at = start + spec.offset;
    const data = spec.dtype === "float32" ? new Float32Array(raw.buffer, at, count)
      : raw.subarray(at, at + count * (spec.dtype === "code16" ? 2 : 1));
    arrays[name] = { ...spec, data, count };
  }
  return { ...header, arrays };
}

function valueAt(array, index) {
  const { data, dtype, count, low, step } = array;
  if (dtype === "float32") return data[index];
  return low + step * (dtype === "code16" ? data[index] | (data[count + index] << 8) : data[index]);
}

/** Values one after another. A loop, since it runs for all layers at every change of image. */
function valuesAt(array, first, size) {
  const { data, dtype, count, low, step } = array, values = new Float32Array(size);
  if (dtype === "code16") for (let i = 0, at = first; i < size; i += 1, at += 1) values[i] = low + step * (data[at] | (data[count + at] << 8));
  else for (let i = 0; i < size; i += 1) values[i] = valueAt(array, first + i);
  return values;
}

/** All that the packs hold, and what follows from it by sums. Maps are (positions, channels), position by position. */
class Data {
  constructor(packs) {
    this.view = packs.find((pack) => pack.kind === "view");
    Object.assign(this, this.view); // title, layers, names, labels, predictions, classes, arrays
    this.outcomes = packs.filter((pack) => pack.kind === "outcome");
    this.attributions = packs.filter((pack) => pack.kind === "attribution");
    this.positions = packs.filter((pack) => pack.kind === "positions");
    this.sequential = table(this.arrays.sequential.data);
    this.diverging = table(this.arrays.diverging.data);
    this.files = this.names.map((_, number) => this.file(number));
    this.cache = new Map();
  }

  file(number) {
    const array = this.arrays[`image/${number}`];
    return array && { source: `data:${array.mime};base64,${btoa(String.fromCharCode(...array.data))}`, size: array.size };
  }

  layer(name) { return this.layers.find((layer) => layer.name === name) ?? this.layers[0]; }

  cached(key, make) {
    if (!this.cache.has(key)) {
      if (this.cache.size > 400) this.cache.clear();
      this.cache.set(key, make());
    }
    return this.cache.get(key);
  }

  /** The attention of one image in a layer, (positions · channels). */
  maps(layer, image, outcome) {
    return this.cached(`maps ${layer.name} ${image} ${outcome?.name}`, () => {
      const array = (outcome ?? this).arrays[`attention/${layer.name}`];
      const size = layer.kernel[0] * layer.kernel[1] * layer.channels;
      return valuesAt(array, array.shape[0] === 1 ? 0 : image * size, size);
    });
  }

  /** The map of one channel, (positions). */
  map(layer, image, channel, outcome) {
    const array = (outcome ?? this).arrays[`attention/${layer.name}`];
    const positions = layer.kernel[0] * layer.kernel[1];
    const first = (array.shape[0] === 1 ? 0 : image * positions * layer.channels) + channel;
    return Float32Array.from({ length: positions }, (_, p) => valueAt(array, first + p * layer.channels));
  }

  mean(layer, image, outcome) {
    return this.cached(`mean ${layer.name} ${image} ${outcome?.name}`, () => {
      const maps = this.maps(layer, image, outcome), channels = layer.channels;
      const sums = new Float32Array(maps.length / channels);
      for (let p = 0, index = 0; p < sums.length; p += 1) {
        for (let c = 0; c < channels; c += 1, index += 1) sums[p] += maps[index] / channels;
      }
      return sums;
    });
  }

  /** Entropy of each channel's map, relative to that of the even map. */
  entropies(layer, image, outcome) {
    return this.cached(`entropy ${layer.name} ${image} ${outcome?.name}`, () => {
      const maps = this.maps(layer, image, outcome), channels = layer.channels, positions = maps.length / channels;
      const sums = new Float32Array(channels).fill(positions === 1 ? 1 : 0);
      if (positions > 1) {
        const unit = Math.log(positions);
        for (let p = 0, index = 0; p < positions; p += 1) {
          for (let c = 0; c < channels; c += 1, index += 1) {
            if (maps[index] > 0) sums[c] -= maps[index] * Math.log(maps[index]) / unit;
          }
        }
      }
      return sums;
    });
  }

  probabilities(image, outcome) {
    const array = (outcome ?? this).arrays.probabilities;
    const classes = array?.shape[1];
    return array && array.data.subarray(image * classes, (image + 1) * classes);
  }

  /** The greatest distance of the own maps of all images from the even share, in even shares. */
  reach(layer) {
    const { low, high } = this.arrays[`attention/${layer.name}`], even = 1 / (layer.kernel[0] * layer.kernel[1]);
    return Math.max(1 - low / even, high / even - 1);
  }

  right(image) {
    const label = this.labels?.[image] ?? -1, predicted = this.predictions?.[image];
    return label < 0 || predicted === undefined ? null : label === predicted;
  }

  className(index) { return this.classes?.[index] ?? `class ${index}`; }

  /** Name, class and mistake of an image, in words. */
  describe(image) {
    const label = this.labels?.[image] ?? -1, right = this.right(image), predicted = this.predictions?.[image];
    const truth = label >= 0 ? `, ${this.className(label)}` : "";
    const guess = right === false || (label < 0 && predicted !== undefined);
    return `${this.names[image]}${truth}${guess ? `, taken for ${this.className(predicted)}` : ""}`;
  }
}

function table(bytes) {
  return Uint32Array.from({ length: 256 }, (_, i) =>
    (255 << 24 | bytes[3 * i + 2] << 16 | bytes[3 * i + 1] << 8 | bytes[3 * i]) >>> 0);
}

// -------------------------------------------------------------------------------------------------------- drawing

const fixed = (value, digits = 4) => value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 4) => (value > 0 ? "+" : "") + fixed(value, digits);
const shade = (value, low, high) => Math.max(0, Math.min(255, Math.round(255 * (value - low) / (high - low))));
const farthest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0.001);
const css = (colors, level) => `rgb(${colors[level] & 255} ${(colors[level] >> 8) & 255} ${(colors[level] >> 16) & 255})`;
const ink = (level) => (Math.abs(level - 127.5) < 70 ? "#111" : "#fff");
const escape = (text) => String(text).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** A canvas of so many CSS pixels, sharp on the screen; gives its context and the screen's pixels per CSS pixel. */
function size(canvas, width, height) {
  const ratio = Math.min(3, Math.max(1, Math.round(globalThis.devicePixelRatio || 1)));
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, ratio };
}

/** Maps as pixels: `places` has {x, y, unit, values, low, high, colors} in CSS pixels, rows of `kernel`. */
function paint(canvas, width, height, kernel, places) {
  const { context, ratio } = size(canvas, width, height);
  const image = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
  for (const { x, y, unit, values, low, high, colors } of places) {
    const side = unit * ratio;
    for (let p = 0; p < values.length; p += 1) {
      const left = (x * ratio) + (p % kernel[1]) * side, top = (y * ratio) + Math.floor(p / kernel[1]) * side;
      const color = colors[shade(values[p], low, high)], across = image.width;
      for (let row = 0, start = top * across + left; row < side; row += 1, start += across) {
        for (let at = start; at < start + side; at += 1) pixels[at] = color; // short: a fill each would take longer
      }
      if (unit >= 5 && values[p] >= (3 * high + low) / 4) { // both ends of the colours look alike in grey
        const dot = Math.max(ratio, Math.round(side / 5)), middle = Math.floor((side - dot) / 2);
        for (let row = 0; row < dot; row += 1) {
          const start = (top + middle + row) * canvas.width + left + middle;
          pixels.fill(0xff000000, start, start + dot);
        }
      }
    }
  }
  context.putImageData(image, 0, 0);
  return context;
}

/** One large map with its numbers. */
function paintNumbers(canvas, kernel, values, low, high, colors, text) {
  const unit = Math.max(28, Math.floor(168 / Math.max(...kernel)));
  const context = paint(canvas, unit * kernel[1], unit * kernel[0], kernel, [{ x: 0, y: 0, unit, values: [], low, high, colors }]);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${unit > 45 ? 13 : 10}px system-ui, sans-serif`;
  values.forEach((value, p) => {
    const level = shade(value, low, high), x = (p % kernel[1]) * unit, y = Math.floor(p / kernel[1]) * unit;
    context.fillStyle = css(colors, level);
    context.fillRect(x, y, unit, unit);
    context.fillStyle = ink(level);
    context.fillText(text(value), x + unit / 2, y + unit / 2 + 1);
  });
}

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function fill(select, options, value) {
  const wanted = JSON.stringify(options);
  if (select.dataset.options !== wanted) {
    select.replaceChildren(...options.map(([key, text, off]) => h("option", { value: key, disabled: !!off }, text)));
    select.dataset.options = wanted;
  }
  select.value = value;
}

// ------------------------------------------------------------------------------------------------------- explorer

let count = 0;

class Explorer {
  /** `host` says where it stands: state (what is chosen at first), keep(state), kernel ({ask, abilities} or null). */
  constructor(root, host) {
    this.root = root;
    this.host = host;
    this.id = `kaviz-${count += 1}`;
    this.state = { ...START, ...host.state };
    this.pick = "a";
    this.cursor = { slot: 0, position: 0 };
    this.build();
    this.observer = new ResizeObserver(() => this.data && this.width !== this.main.clientWidth && this.draw());
    this.observer.observe(this.main);
  }

  async load(contents) {
    const packs = await Promise.all(contents.map((bytes) => unpack(bytes)));
    const before = this.data?.names.length;
    this.data = new Data(packs);
    this.drawn = {};
    this.pictures = this.data.files.map((file) => file && h("img", { src: file.source, alt: "", draggable: false, decoding: "sync" }));
    this.pictures.forEach((picture) => picture?.decode().then(() => { this.drawn.images = ""; this.soon(); }, () => {}));
    if (before && before < this.data.names.length) Object.assign(this.state, { a: before, class: "", right: "", find: "" });
    this.makeFilm();
    this.makeLayers();
    this.draw();
    this.root.dataset.ready = "true";
  }

  close() {
    this.observer.disconnect();
    this.root.replaceChildren();
  }

  soon() { // once for all that comes until the next frame
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
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

  // What is chosen, made good where it is not there (an address may say anything).
  settle() {
    const { state, data } = this, last = data.names.length - 1;
    const whole = (value, low, high) => Math.max(low, Math.min(high, Math.trunc(Number(value)) || 0));
    state.a = whole(state.a, 0, last);
    state.b = Number(state.b) >= 0 ? whole(state.b, 0, last) : -1;
    state.layer = data.layer(state.layer).name;
    state.opacity = whole(state.opacity, 0, 100);
    if (!(state.sort in SORTS)) state.sort = START.sort;
    this.layer = data.layer(state.layer);
    this.outcome = data.outcomes.find((outcome) => outcome.name === state.outcome) ?? null;
    this.attribution = data.attributions.find((one) => one.method === state.method) ?? null;
    this.position = data.positions.find((one) => one.method === state.positions) ?? data.positions[0] ?? null;
    this.first = { name: "A", image: state.a, outcome: this.outcome };
    this.second = state.b >= 0 ? { name: "B", image: state.b, outcome: this.outcome }
      : this.outcome ? { name: "A before", image: state.a, outcome: null } : null;
    this.shares = data.arrays[`share/${this.layer.name}`];
    if ((state.sort === "difference" && !this.second) || (state.sort === "share" && !this.shares)) state.sort = "dependence";
    this.pins = String(state.pins).split(" ").map((pin) => {
      const at = pin.lastIndexOf(":"), layer = data.layers.find((one) => one.name === pin.slice(0, at));
      const channel = Number(pin.slice(at + 1));
      return layer && channel >= 0 && channel < layer.channels ? { key: pin, layer, channel } : null;
    }).filter(Boolean);
  }

  draw() {
    this.settle();
    this.measure();
    const { a, b, layer, outcome, sort, page, scale, pins, method, mode, opacity, positions } = this.state;
    const changed = (part, ...on) => {
      const key = [this.width, globalThis.devicePixelRatio, a, b, outcome, ...on].join(" | ");
      return this.drawn[part] !== key && (this.drawn[part] = key);
    };
    this.drawControls();
    this.drawFilm();
    this.drawLayers();
    if (changed("images", method, mode, opacity)) this.drawImages();
    if (changed("maps", layer, sort, page, scale, pins)) this.drawMaps();
    this.drawPins();
    if (changed("positions", layer, positions)) this.drawPositions();
    this.say();
  }

  /** What is there, then all widths at once: each look at them after a change has the page laid out again. */
  measure() {
    this.grids.classList.toggle("kv-one", !this.second);
    this.gridB.figure.hidden = this.gridD.figure.hidden = !this.second;
    this.imageB.figure.hidden = this.state.b < 0;
    this.pinList.parentElement.hidden = !this.pins.length;
    this.width = this.main.clientWidth;
    this.widths = { image: this.imageA.figure.clientWidth, maps: this.gridA.figure.clientWidth, pins: this.pinList.clientWidth };
    const style = getComputedStyle(this.root);
    this.colors = { ink: style.color, accent: style.getPropertyValue("--kv-accent-drawn") || "#0072b2" };
  }

  // -- the frame

  build() {
    const control = (name, text, element) => {
      element.id = `${this.id}-${name}`;
      this[name] = element;
      return h("div", { class: "kv-control" }, h("label", { htmlFor: element.id }, text), element);
    };
    const select = (name, text, key = name) => {
      const label = control(name, text, h("select"));
      this[name].addEventListener("change", () => this.set({ [key]: this[name].value }));
      return label;
    };
    const button = (text, action, properties = {}) => {
      const element = h("button", { type: "button", ...properties }, text);
      element.addEventListener("click", action);
      return element;
    };
    const part = (name, heading, ...children) => {
      const title = h("h3", { id: `${this.id}-${name}-heading` }, heading);
      return h("section", { class: `kv-part kv-${name}`, "aria-labelledby": title.id }, title, ...children);
    };
    const figure = (name) => {
      const canvas = h("canvas", { role: "img" }), caption = h("figcaption"), bars = h("ul", { class: "kv-bars" });
      this[`image${name}`] = { canvas, caption, bars, figure: h("figure", {}, caption, canvas, bars) };
      return this[`image${name}`].figure;
    };
    const grid = (name) => {
      const canvas = h("canvas", { tabIndex: 0, role: "application" }), caption = h("figcaption");
      const bar = h("div", { class: "kv-scale" }), figure = h("figure", {}, caption, canvas, bar);
      this[`grid${name}`] = { canvas, caption, bar, figure };
      canvas.addEventListener("pointermove", (event) => this.point(canvas, event));
      canvas.addEventListener("click", (event) => { if (this.point(canvas, event)) this.pin(); });
      canvas.addEventListener("keydown", (event) => this.onGridKey(event));
      canvas.addEventListener("focus", () => this.drawCursor());
      canvas.addEventListener("blur", () => this.drawMaps());
      return figure;
    };

    this.heading = h("h2");
    this.status = h("p", { class: "kv-status", role: "status" });
    const saves = h("div", { class: "kv-saves", role: "group", "aria-label": "Save this view" },
      ...["PNG", "SVG", "CSV", "npz"].map((kind) =>
        button(kind, () => this.save(kind.toLowerCase()), { "aria-label": `Save as ${kind}` })));
    if (this.host.link) saves.append(button("Copy link", () => this.copyLink()));

    this.findInput = h("input", { type: "search", placeholder: "part of a name" });
    this.findInput.addEventListener("input", () => this.set({ find: this.findInput.value }));
    const picks = h("div", { class: "kv-picks", role: "radiogroup", "aria-label": "A click chooses" }, "A click chooses",
      ...["a", "b"].map((name) => {
        const radio = h("input", { type: "radio", name: `${this.id}-pick`, value: name, checked: name === "a" });
        radio.addEventListener("change", () => { this.pick = name; });
        return h("label", {}, radio, name.toUpperCase());
      }));
    this.film = h("div", { class: "kv-strip kv-frames", role: "listbox", tabIndex: 0, "aria-label": "Images" });
    this.filmNote = h("p", { class: "kv-note" });
    this.noB = button("No B", () => this.set({ b: -1 }));
    this.film.addEventListener("keydown", (event) => this.onFilmKey(event));

    this.strip = h("div", { class: "kv-strip kv-layers-strip", role: "listbox", tabIndex: 0, "aria-label": "Layers" });
    this.strip.addEventListener("keydown", (event) => this.onLayerKey(event));

    const opacity = control("opacity", "Opacity", h("input", { type: "range", min: 0, max: 100 }));
    this.opacity.addEventListener("input", () => this.set({ opacity: Number(this.opacity.value) }));
    this.pager = h("div", { class: "kv-pager", role: "group", "aria-label": "Channels shown" },
      button("‹", () => this.set({ page: this.state.page - 1 }), { "aria-label": "Previous channels" }),
      h("span"), button("›", () => this.set({ page: this.state.page + 1 }), { "aria-label": "Next channels" }));
    this.readout = h("output", { class: "kv-readout", "aria-live": "polite" });
    this.grids = h("div", { class: "kv-grids" }, grid("A"), grid("B"), grid("D"));
    this.pinList = h("ul", { class: "kv-pins" });
    this.positionPanels = h("div", { class: "kv-positions" });
    this.positionNote = h("p", { class: "kv-note" });

    this.main = h("div", { class: "kv-main" },
      part("images", "What the model sees",
        h("div", { class: "kv-controls" }, select("method", "Attribution"), select("mode", "Sign"), opacity),
        this.attributionNote = h("p", { class: "kv-note" }),
        h("div", { class: "kv-pair" }, figure("A"), figure("B"))),
      h("div", { class: "kv-column" }, part("maps", "Attention of each channel",
        h("div", { class: "kv-controls" }, select("sort", "Sorted by"), select("scale", "Colours fit"),
          select("outcomes", "Attention", "outcome"), this.pager),
        this.grids, this.readout,
        h("p", { class: "kv-note" }, "Point at a map for its value; click, or press Enter, to pin its channel. ",
          "Keys: arrows for channels, [ and ] for positions.")),
      part("pinned", "Pinned channels", this.pinList),
      part("position", "Attention and use of the kernel positions",
        h("div", { class: "kv-controls" }, select("positions", "Position attribution")),
        this.positionPanels, this.positionNote)));
    this.root.classList.add("kaviz-explorer");
    this.root.replaceChildren(
      h("header", { class: "kv-head" }, h("div", {}, this.heading, this.status), saves),
      part("film", "Images",
        h("div", { class: "kv-controls" }, select("class", "Class"), select("right", "Prediction"),
          control("find", "Name", this.findInput), picks, this.noB),
        this.film, this.filmNote),
      part("layers", "Layers", h("p", { class: "kv-note" }, "Mean map of the channels of A, and their mean entropy: ",
        "1.00 is an even map, less is a preference for some positions."), this.strip),
      this.main,
      this.buildKernel(part, control, button));
  }

  buildKernel(part, control, button) {
    const { kernel } = this.host;
    if (!kernel) {
      return part("kernel", "Interventions", this.kernelNote = h("p", { class: "kv-note" },
        "This view stands without a kernel: other interventions and images of your own need the notebook."));
    }
    const { uploads, interventions, methods } = kernel.abilities;
    const chosen = (select) => select.options[select.selectedIndex]?.value;
    const kinds = control("kind", "Intervention", h("select"));
    fill(this.kind, Object.entries(interventions).map(([key, text]) => [key, `${key}: ${text}`]), Object.keys(interventions)[0]);
    const where = control("where", "In", h("select"));
    const position = control("spot", "Position", h("select"));
    const attributions = control("compute", "Attribution", h("select"));
    fill(this.compute, Object.entries(methods), Object.keys(methods)[0]);
    this.kind.addEventListener("change", () => this.draw());
    this.run = button("Run", () => this.ask({
      ask: "intervene", kind: chosen(this.kind), layers: chosen(this.where) === "layer" ? this.layer.name : "*",
      position: Number(chosen(this.spot)), donor: this.state.b,
    }), { class: "kv-primary" });
    this.explain = button("Compute", () => this.ask({ ask: "attribute", method: chosen(this.compute) }));
    this.files = h("input", { type: "file", multiple: true, accept: "image/*", hidden: true });
    this.files.addEventListener("change", () => this.upload());
    this.uploadButton = button("Upload images…", () => this.files.click(), { disabled: !uploads });
    if (!uploads) this.uploadButton.title = "needs the preprocessing of the images";
    this.progress = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.cancel = button("Cancel", () => kernel.ask({ ask: "cancel" }));
    this.work = h("div", { class: "kv-work", hidden: true }, this.progress, this.workNote = h("span"), this.cancel);
    const row = (...children) => h("div", { class: "kv-controls" }, ...children);
    return part("kernel", "Ask the model", row(kinds, where, position, this.run), row(attributions, this.explain,
      this.uploadButton, this.files), this.work);
  }

  drawControls() {
    const { data, state } = this, last = data.outcomes.length + data.attributions.length;
    const n = data.names.length, wrong = data.names.filter((_, image) => data.right(image) === false).length;
    this.heading.textContent = data.title;
    this.host.title?.(data.title);
    const labelled = data.names.some((_, image) => data.right(image) !== null);
    this.summary = `${n} image${n === 1 ? "" : "s"}, ${data.layers.length} layers`
      + (labelled ? `, ${wrong} wrong` : "");
    if (!this.message) this.status.textContent = this.summary;
    const known = [...new Set(data.labels ?? [])].filter((label) => label >= 0).sort((x, y) => x - y);
    fill(this.class, [["", "all"], ...known.map((label) => [String(label), data.className(label)])], state.class);
    fill(this.right, [["", "all"], ["right", "✓ right", !labelled], ["wrong", "✗ wrong", !labelled]], state.right);
    if (this.findInput.value !== state.find) this.findInput.value = state.find;
    this.noB.disabled = state.b < 0;
    fill(this.sort, Object.entries(SORTS).map(([key, text]) =>
      [key, text, (key === "difference" && !this.second) || (key === "share" && !this.shares)]), state.sort);
    fill(this.scale, [["layer", "this layer"], ["all", "all layers"]], state.scale);
    fill(this.outcomes, [["", "the model's own"], ...data.outcomes.map(({ name }) => [name, name])], this.outcome?.name ?? "");
    fill(this.method, [["", last && !data.attributions.length ? "none computed" : "none"],
      ...data.attributions.map(({ method }) => [method, method])], this.attribution?.method ?? "");
    fill(this.mode, [["signed", "signed"], ["absolute", "absolute"]], state.mode);
    this.opacity.value = state.opacity;
    this.mode.disabled = this.opacity.disabled = !this.attribution;
    fill(this.positions, data.positions.length ? data.positions.map(({ method }) => [method, method]) : [["", "none in this view"]],
      this.position?.method ?? "");
    this.positions.disabled = data.positions.length < 2;
    if (!this.host.kernel) return;
    fill(this.where, [["all", "all layers"], ["layer", this.layer.name]], this.where.value || "all");
    const places = this.host.kernel.abilities.positions[this.layer.name];
    const middle = String(Math.floor(places.length / 2));
    const kept = this.spot.dataset.layer === this.layer.name && this.spot.value;
    fill(this.spot, places.map((name, place) => [String(place), name]), kept || middle);
    this.spot.dataset.layer = this.layer.name;
    this.spot.disabled = !this.host.kernel.abilities.of_a_position.includes(this.kind.value);
  }

  // -- the images in a row

  makeFilm() {
    this.frames = this.data.names.map((name, image) => {
      const frame = h("div", { class: "kv-frame", role: "option", id: `${this.id}-image-${image}` },
        h("span", { class: "kv-thumb" }, this.pictures[image]?.cloneNode() ?? "—", h("b")), h("span", { class: "kv-name" }));
      const right = this.data.right(image);
      frame.lastChild.textContent = `${right === null ? "" : right ? "✓ " : "✗ "}${name}`;
      frame.title = this.data.describe(image);
      frame.addEventListener("click", (event) => this.set({ [event.shiftKey ? "b" : this.pick]: image }));
      return frame;
    });
    this.film.replaceChildren(...this.frames);
  }

  shown() {
    const { data, state } = this, find = state.find.toLowerCase();
    return data.names.flatMap((name, image) => {
      const right = data.right(image);
      const fits = (state.class === "" || String(data.labels?.[image]) === state.class)
        && (state.right === "" || (right !== null && right === (state.right === "right")))
        && name.toLowerCase().includes(find);
      return fits ? [image] : [];
    });
  }

  drawFilm() {
    const { data, state } = this;
    this.inFilm = this.shown();
    const shown = new Set(this.inFilm);
    this.frames.forEach((frame, image) => {
      const marks = [image === state.a && "A", image === state.b && "B"].filter(Boolean).join(" ");
      const key = `${shown.has(image)} ${marks}`;
      if (frame.dataset.key === key) return;
      frame.dataset.key = key;
      frame.hidden = !shown.has(image);
      frame.classList.toggle("kv-a", image === state.a);
      frame.classList.toggle("kv-b", image === state.b);
      frame.setAttribute("aria-selected", String(image === state.a));
      frame.setAttribute("aria-label", `${data.describe(image)}${marks && `; image ${marks}`}`);
      frame.querySelector("b").textContent = marks;
    });
    this.film.setAttribute("aria-activedescendant", this.frames[state.a].id);
    this.filmNote.textContent = this.inFilm.length === data.names.length
      ? "Click for A, shift-click for B. Keys: arrows for A, with Shift for B, Delete for no B."
      : `${this.inFilm.length} of ${data.names.length} images`;
  }

  onFilmKey(event) {
    const name = event.shiftKey ? "b" : "a", { inFilm } = this;
    const place = inFilm.indexOf(this.state[name] < 0 ? this.state.a : this.state[name]);
    const places = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: inFilm.length - 1 };
    if (event.key === "Delete" || event.key === "Backspace") this.set({ b: -1 });
    else if (event.key in places && inFilm.length) {
      const image = inFilm[Math.max(0, Math.min(inFilm.length - 1, places[event.key]))];
      this.set({ [name]: image });
      this.reveal(this.film, this.frames[image]);
    } else return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab has keys of its own
  }

  reveal(strip, element) { // without moving the page
    const left = element.offsetLeft - strip.offsetLeft, right = left + element.offsetWidth;
    if (left < strip.scrollLeft) strip.scrollLeft = left - 8;
    else if (right > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = right - strip.clientWidth + 8;
  }

  // -- the layers in a row

  makeLayers() {
    this.layerItems = this.data.layers.map((layer, number) => {
      const item = h("div", { class: "kv-layer", role: "option", id: `${this.id}-layer-${number}` },
        h("canvas"), h("span", { class: "kv-name" }, layer.name.replace(/\.(conv\d?|0)?(\.\d)?$/, "")),
        h("span", { class: "kv-meter" }, h("i")), h("span", { class: "kv-number" }));
      item.title = `${layer.name}: ${layer.kernel.join("×")}, ${layer.channels} channels`;
      item.addEventListener("click", () => this.set({ layer: layer.name }));
      return item;
    });
    this.strip.replaceChildren(...this.layerItems);
  }

  drawLayers() {
    const { data, state } = this;
    this.layerItems.forEach((item, number) => {
      const layer = data.layers[number], { image, outcome } = this.first;
      const chosen = layer.name === state.layer;
      item.classList.toggle("kv-chosen", chosen);
      item.setAttribute("aria-selected", String(chosen));
      if (chosen) this.strip.setAttribute("aria-activedescendant", item.id);
      const key = `${image} ${outcome?.name} ${globalThis.devicePixelRatio}`;
      if (item.dataset.key === key) return;
      item.dataset.key = key;
      const mean = data.mean(layer, image, outcome), even = 1 / mean.length;
      const reach = Math.max(0.01, ...mean.map((value) => Math.abs(value / even - 1)));
      const unit = Math.max(3, Math.floor(48 / Math.max(...layer.kernel)));
      paint(item.firstChild, unit * layer.kernel[1], unit * layer.kernel[0], layer.kernel,
        [{ x: 0, y: 0, unit, values: mean, low: even * (1 - reach), high: even * (1 + reach), colors: data.diverging }]);
      const entropies = data.entropies(layer, image, outcome);
      const entropy = entropies.reduce((sum, value) => sum + value / entropies.length, 0);
      item.querySelector("i").style.width = `${100 * Math.max(0, Math.min(1, entropy))}%`;
      item.querySelector(".kv-number").textContent = entropy.toFixed(2);
      item.setAttribute("aria-label", `${layer.name}, ${layer.channels} channels, mean entropy ${entropy.toFixed(2)}`);
    });
  }

  onLayerKey(event) {
    const { layers } = this.data, place = layers.indexOf(this.layer);
    const places = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: layers.length - 1 };
    if (!(event.key in places)) return;
    const next = Math.max(0, Math.min(layers.length - 1, places[event.key]));
    this.set({ layer: layers[next].name });
    this.reveal(this.strip, this.layerItems[next]);
    event.preventDefault();
    event.stopPropagation();
  }

  // -- images, attributions, predictions

  drawImages() {
    this.drawImage(this.imageA, this.first);
    if (this.state.b >= 0) this.drawImage(this.imageB, this.second);
    this.attributionNote.textContent = !this.attribution ? ""
      : `What speaks for ${this.attribution.about}: ${this.state.mode === "signed" ? "red for it, blue against it" : "yellow is strong, either way"}; `
        + "in per cent of the image's strongest.";
    this.attributionNote.hidden = !this.attribution;
  }

  drawImage({ canvas, caption, bars }, { name, image }) {
    const { data } = this, picture = this.pictures[image], [width, height] = data.files[image]?.size ?? [1, 1];
    const side = Math.max(120, Math.min(260, this.widths.image));
    const scale = side / Math.max(width, height);
    const { context } = size(canvas, Math.round(width * scale), Math.round(height * scale));
    context.imageSmoothingEnabled = scale < 3;
    if (picture?.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, width * scale, height * scale);
    const about = this.overlay(context, image, width * scale, height * scale);
    caption.replaceChildren(h("b", {}, name), ` ${data.describe(image)}`);
    canvas.setAttribute("aria-label", `Image ${name}: ${data.describe(image)}${about}`);
    this.drawBars(bars, image);
  }

  overlay(context, image, width, height) {
    const one = this.attribution, array = one?.arrays.percent;
    if (!array || image >= array.shape[0]) return one ? "; no attribution for it" : "";
    const [, rows, columns] = array.shape, small = h("canvas", { width: columns, height: rows });
    const pixels = small.getContext("2d").createImageData(columns, rows), colors = new Uint32Array(pixels.data.buffer);
    for (let index = 0; index < colors.length; index += 1) {
      const value = (array.data[image * colors.length + index] - 100) / 100, strength = Math.abs(value);
      const color = this.state.mode === "signed" ? this.data.diverging[shade(value, -1, 1)] : this.data.sequential[shade(strength, 0, 1)];
      const alpha = this.state.mode === "signed" ? Math.min(1, 1.5 * strength) : 1;
      colors[index] = (color & 0xffffff) | (Math.round(255 * alpha * this.state.opacity / 100) << 24);
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = columns > 16;
    context.drawImage(small, 0, 0, width, height);
    return `; with the attribution ${one.method}`;
  }

  /** The likeliest classes, the true one and the one from before. [{index, now, before, label}] */
  ranking(image) {
    const { data } = this, now = data.probabilities(image, this.outcome), label = data.labels?.[image] ?? -1;
    if (!now) return [];
    const before = this.outcome && data.probabilities(image, null);
    const best = [...now.keys()].sort((x, y) => now[y] - now[x]), kept = best.slice(0, LINES);
    const extra = [label, before ? before.indexOf(Math.max(...before)) : -1].filter((index) => index >= 0 && !kept.includes(index));
    return [...kept, ...new Set(extra)].map((index) => ({ index, now: now[index], before: before?.[index], label: index === label }));
  }

  drawBars(list, image) {
    const lines = this.ranking(image);
    if (!lines.length && this.data.predictions) lines.push({ index: this.data.predictions[image], now: null });
    list.replaceChildren(...lines.map(({ index, now, before, label }) => {
      const bar = h("span", { class: "kv-bar" }, h("i"));
      bar.firstChild.style.width = `${100 * (now ?? 0)}%`;
      if (before !== undefined && before !== null) {
        const stroke = h("s");
        stroke.style.left = `${100 * before}%`;
        bar.append(stroke);
      }
      const number = now === null ? "predicted" : now.toFixed(2);
      const was = before === undefined || before === null ? "" : ` (before ${before.toFixed(2)})`;
      return h("li", {}, h("span", { class: "kv-class", title: this.data.className(index) }, this.data.className(index)),
        h("span", { class: "kv-value" }, `${label ? "✓ true · " : ""}${number}${was}`), bar);
    }));
  }

  // -- the maps of the channels

  /** Channels in the chosen order, and what they are sorted by. */
  order() {
    const { data, layer, state, first } = this, channels = [...Array(layer.channels).keys()];
    const by = {
      number: () => channels.map(() => 0),
      dependence: () => data.arrays[`dependence/${layer.name}`].data,
      entropy: () => data.entropies(layer, first.image, first.outcome).map((entropy) => -entropy),
      share: () => valuesAt(this.shares, first.image * layer.channels, layer.channels),
      difference: () => this.distances(), // settle() has seen to it that there are two
    }[state.sort]();
    return channels.sort((x, y) => by[y] - by[x] || x - y);
  }

  /** Total variation distance between the maps of the two, channel by channel. */
  distances() {
    const { data, layer, first, second } = this;
    const a = data.maps(layer, first.image, first.outcome), b = data.maps(layer, second.image, second.outcome);
    return data.cached(`distance ${layer.name} ${first.image} ${second.image} ${first.outcome?.name} ${second.outcome?.name}`, () => {
      const sums = new Float32Array(layer.channels);
      for (let index = 0; index < a.length; index += 1) sums[index % layer.channels] += Math.abs(a[index] - b[index]) / 2;
      return sums;
    });
  }

  scaleOf(layer) {
    const even = 1 / (layer.kernel[0] * layer.kernel[1]);
    const farthest = Math.max(...(this.state.scale === "all" ? this.data.layers : [layer]).map((one) => this.data.reach(one)));
    const reach = Math.min(1, farthest) || 0.01; // no attention is less than none
    return { low: even * (1 - reach), high: even * (1 + reach), even, beyond: farthest > 1 ? even * (1 + farthest) : 0 };
  }

  drawMaps() {
    const { data, layer, state, first, second } = this, { kernel, channels } = layer;
    const width = Math.max(150, this.widths.maps);
    const height = Math.min(340, second ? 340 : 300);
    const fit = (unit) => ({
      unit, columns: Math.floor((width + GAP) / (unit * kernel[1] + GAP)), rows: Math.floor((height + GAP) / (unit * kernel[0] + GAP)),
    });
    const least = Math.max(2, Math.ceil(16 / Math.max(...kernel)));
    let place = fit(least);
    for (let unit = 28; unit > least; unit -= 1) {
      const one = fit(unit);
      if (one.columns * one.rows >= channels) { place = one; break; }
    }
    const each = Math.max(1, place.columns * place.rows), pages = Math.ceil(channels / each);
    state.page = Math.max(0, Math.min(pages - 1, Math.trunc(Number(state.page)) || 0));
    const all = this.order();
    this.slots = all.slice(state.page * each, (state.page + 1) * each);
    this.place = { ...place };
    this.cursor.slot = Math.min(this.cursor.slot, this.slots.length - 1);
    this.cursor.position = Math.min(this.cursor.position, kernel[0] * kernel[1] - 1);
    const [previous, note, next] = this.pager.children;
    [previous.disabled, next.disabled] = [state.page === 0, state.page === pages - 1];
    note.textContent = pages === 1 ? `all ${channels}` : `${state.page * each + 1}–${state.page * each + this.slots.length} of ${channels}`;

    const a = data.maps(layer, first.image, first.outcome), b = second && data.maps(layer, second.image, second.outcome);
    const difference = second && a.map((value, index) => value - b[index]);
    const { low, high, even, beyond } = this.scaleOf(layer), most = second ? farthest(difference) : 0;
    const unit = beyond ? `attention, at most ${fixed(beyond, 3)}` : "attention";
    const named = (who) => `${who.name}: ${data.names[who.image]}`;
    this.drawGrid(this.gridA, named(first), a, low, high, even, unit);
    if (second) {
      this.drawGrid(this.gridB, named(second), b, low, high, even, unit);
      this.drawGrid(this.gridD, `${first.name} − ${second.name}`, difference, -most, most, 0, "difference, on its own scale");
    }
    this.values = { a, b, difference };
    this.drawCursor();
  }

  drawGrid({ canvas, caption, bar }, title, maps, low, high, even, about) {
    const { layer, place } = this, { kernel, channels } = layer, { unit, columns } = place;
    const rows = Math.ceil(this.slots.length / columns), across = Math.min(columns, this.slots.length);
    const places = this.slots.map((channel, slot) => {
      const values = new Float32Array(kernel[0] * kernel[1]);
      for (let p = 0; p < values.length; p += 1) values[p] = maps[p * channels + channel];
      return {
        x: (slot % columns) * (unit * kernel[1] + GAP), y: Math.floor(slot / columns) * (unit * kernel[0] + GAP),
        unit, low, high, values, colors: this.data.diverging,
      };
    });
    paint(canvas, across * (unit * kernel[1] + GAP) - GAP, rows * (unit * kernel[0] + GAP) - GAP, kernel, places);
    caption.textContent = title;
    canvas.setAttribute("aria-label", `Maps of ${this.slots.length} channels of ${layer.name}, ${title}, sorted by ${SORTS[this.state.sort]}`);
    drawScale(bar, this.data.diverging, low, high, even ? `1/${Math.round(1 / even)}` : "0", about);
  }

  drawCursor() {
    const { layer, place, cursor, slots } = this, pinned = new Set(this.pins.map(({ key }) => key));
    const grids = [this.gridA, ...(this.second ? [this.gridB, this.gridD] : [])];
    const box = (context, slot, color, dash, width) => { // half of its line within the map: all of it would be cut off at the edge
      context.strokeStyle = color;
      context.lineWidth = width;
      context.setLineDash(dash);
      const x = (slot % place.columns) * (place.unit * layer.kernel[1] + GAP), y = Math.floor(slot / place.columns) * (place.unit * layer.kernel[0] + GAP);
      context.strokeRect(x, y, place.unit * layer.kernel[1], place.unit * layer.kernel[0]);
    };
    for (const { canvas } of grids) {
      const context = canvas.getContext("2d");
      slots.forEach((channel, slot) => { if (pinned.has(`${layer.name}:${channel}`)) box(context, slot, this.colors.accent, [], 2); });
      if (document.activeElement === canvas) box(context, cursor.slot, this.colors.ink, [3, 2], 2);
    }
  }

  point(canvas, event) {
    const { place, layer } = this, box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * (canvas.clientWidth / box.width), y = (event.clientY - box.top) * (canvas.clientHeight / box.height);
    const across = place.unit * layer.kernel[1] + GAP, down = place.unit * layer.kernel[0] + GAP;
    const column = Math.floor(x / across), row = Math.floor(y / down), slot = row * place.columns + column;
    const [i, j] = [Math.floor((y - row * down) / place.unit), Math.floor((x - column * across) / place.unit)];
    if (column >= place.columns || slot >= this.slots.length || slot < 0 || i >= layer.kernel[0] || j >= layer.kernel[1]) return false;
    this.cursor = { slot, position: i * layer.kernel[1] + j };
    this.say();
    return true;
  }

  onGridKey(event) {
    const { cursor, place, slots, layer, state } = this, positions = layer.kernel[0] * layer.kernel[1];
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: place.columns, ArrowUp: -place.columns };
    if (event.key in steps) {
      const next = cursor.slot + steps[event.key];
      if (next >= 0 && next < slots.length) cursor.slot = next;
      else this.set({ page: state.page + Math.sign(next) });
    } else if (event.key === "[") cursor.position = (cursor.position + positions - 1) % positions;
    else if (event.key === "]") cursor.position = (cursor.position + 1) % positions;
    else if (event.key === "Enter" || event.key === " ") this.pin();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.drawMaps();
    this.say();
  }

  /** What is under the pointer, in words and numbers. */
  say() {
    const { data, layer, cursor, first, second, values } = this, channel = this.slots[cursor.slot], p = cursor.position;
    const at = p * layer.channels + channel, positions = layer.kernel[0] * layer.kernel[1];
    const row = Math.floor(p / layer.kernel[1]) + 1, column = (p % layer.kernel[1]) + 1;
    const { step } = (this.outcome ?? data).arrays[`attention/${layer.name}`];
    const own = [`${first.name} ${fixed(values.a[at])} = ${fixed(values.a[at] * positions, 2)} × 1/${positions}`];
    if (second) own.push(`${second.name} ${fixed(values.b[at])}`, `${first.name} − ${second.name} ${signed(values.difference[at])}`);
    const about = [`input dependence ${data.arrays[`dependence/${layer.name}`].data[channel].toFixed(3)}`,
      `entropy ${data.entropies(layer, first.image, first.outcome)[channel].toFixed(3)}`];
    if (second) about.push(`difference ${this.distances()[channel].toFixed(3)}`);
    if (this.shares) about.push(`share ${(100 * valueAt(this.shares, first.image * layer.channels + channel)).toFixed(2)} %`);
    const error = step / 2;
    this.readout.replaceChildren(
      h("b", {}, `${layer.name} · channel ${channel} · row ${row}, column ${column}`), h("br"), own.join(" · "), h("br"),
      h("small", {}, `${about.join(" · ")} · attention to ±${error.toPrecision(1)}`));
  }

  // -- pinned channels

  pin() { this.togglePin(`${this.layer.name}:${this.slots[this.cursor.slot]}`); }

  togglePin(key) {
    const keys = this.pins.map((pin) => pin.key);
    this.set({ pins: (keys.includes(key) ? keys.filter((one) => one !== key) : [...keys, key]).join(" ") });
  }

  drawPins() {
    const { data, first, second } = this, images = this.inFilm.slice(0, PINNED_IMAGES);
    while (this.pinList.children.length > this.pins.length) this.pinList.lastChild.remove();
    while (this.pinList.children.length < this.pins.length) {
      const go = h("button", { type: "button", class: "kv-plain" }), off = h("button", { type: "button" }, "Unpin");
      const item = h("li", {}, h("div", { class: "kv-pin-head" }, go, off), h("canvas", { role: "img" }));
      go.addEventListener("click", () => this.set({ layer: item.dataset.key.slice(0, item.dataset.key.lastIndexOf(":")) }));
      off.addEventListener("click", () => this.togglePin(item.dataset.key));
      this.pinList.append(item);
    }
    this.pins.forEach(({ key, layer, channel }, number) => {
      const item = this.pinList.children[number], [head, canvas] = item.children, { kernel } = layer;
      const { low, high } = this.scaleOf(layer), colors = data.diverging, unit = Math.max(2, Math.floor(42 / Math.max(...kernel)));
      item.dataset.key = key;
      head.firstChild.textContent = `${layer.name} · channel ${channel}`;
      head.lastChild.setAttribute("aria-label", `Unpin ${layer.name}, channel ${channel}`);
      const a = data.map(layer, first.image, channel, first.outcome), b = second && data.map(layer, second.image, channel, second.outcome);
      const wide = unit * kernel[1], tall = unit * kernel[0], small = Math.max(2, Math.floor(unit / 2)), top = 16;
      const places = [{ x: 0, y: top, unit, values: a, low, high, colors }], names = [[0, "A"]];
      if (second) {
        const difference = a.map((value, p) => value - b[p]), most = farthest(difference);
        places.push({ x: wide + 10, y: top, unit, values: b, low, high, colors }, { x: 2 * wide + 20, y: top, unit, values: difference, low: -most, high: most, colors });
        names.push([wide + 10, second.name === "B" ? "B" : "before"], [2 * wide + 20, "difference"]);
      }
      const left = names.at(-1)[0] + wide + 24, across = small * kernel[1] + GAP;
      const width = Math.max(left + across, Math.min(left + images.length * across, this.widths.pins - 26));
      const fitting = images.slice(0, 2 * Math.max(1, Math.floor((width - left) / across)));
      const columns = Math.max(1, Math.floor((width - left) / across));
      fitting.forEach((image, place) => places.push({
        x: left + (place % columns) * across, y: top + Math.floor(place / columns) * (small * kernel[0] + GAP), unit: small, low, high, colors,
        values: data.map(layer, image, channel, this.outcome),
      }));
      names.push([left, `in ${fitting.length} of the images`]);
      const context = paint(canvas, Math.floor(width), top + Math.max(tall, 2 * small * kernel[0] + GAP), kernel, places);
      context.fillStyle = this.colors.ink;
      context.font = "11px system-ui, sans-serif";
      names.forEach(([x, text]) => context.fillText(text, x, 11));
      canvas.setAttribute("aria-label", `Maps of channel ${channel} of ${layer.name}: A ${[...a].map((value) => fixed(value, 3)).join(" ")}`);
    });
  }

  // -- kernel positions: attention beside what is used

  drawPositions() {
    const { data, layer, position } = this, values = position?.arrays[`values/${layer.name}`];
    const section = this.positionPanels.closest("section");
    const who = [this.first, ...(this.state.b >= 0 ? [this.second] : [])];
    const { even } = this.scaleOf(layer), positions = layer.kernel[0] * layer.kernel[1];
    const means = who.map(({ image, outcome }) => data.mean(layer, image, outcome));
    const reach = even * Math.max(0.01, ...means.flatMap((mean) => [...mean].map((value) => Math.abs(value / even - 1))));
    const used = who.map(({ image }) => (values && image < values.shape[0] ? values.data.subarray(image * positions, (image + 1) * positions) : null));
    const most = Math.max(1e-12, ...used.flatMap((one) => (one ? [...one].map(Math.abs) : [0])));
    const panel = (title, map, low, high, middle, text) => {
      const canvas = h("canvas", { role: "img", "aria-label": `${title}: ${[...map].map(text).join(" ")}` }), bar = h("div", { class: "kv-scale" });
      paintNumbers(canvas, layer.kernel, map, low, high, data.diverging, text);
      drawScale(bar, data.diverging, low, high, middle, "");
      return h("figure", {}, h("figcaption", {}, title), canvas, bar);
    };
    this.positionPanels.replaceChildren(...who.flatMap(({ name }, number) => [
      panel(`${name}: attention, mean of the channels`, means[number], even - reach, even + reach, `1/${positions}`, (value) => fixed(value, 3)),
      ...(used[number] ? [panel(`${name}: ${position.method}`, used[number], -most, most, "0", (value) => signed(value, Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(most))))))] : []),
    ]));
    section.querySelector(".kv-controls").hidden = !position;
    this.positionNote.textContent = !position ? "This view has no position attributions: what a position is given is shown, not what is made of it."
      : !values ? `${position.method} has no values for this layer.`
        : `Contribution to ${position.about}. ${used[0] ? `Attention and contribution of A correlate by ${signed(correlation(means[0], used[0]), 2)}. ` : ""}${position.note}`;
  }

  // -- the kernel

  ask(message, buffers) {
    this.tell("");
    this.busy(true, "asked …");
    this.host.kernel.ask(message, buffers);
  }

  async upload() {
    const files = [...this.files.files];
    if (!files.length) return;
    const contents = await Promise.all(files.map((file) => file.arrayBuffer()));
    this.files.value = ""; // so that the same file can be given again
    this.ask({ ask: "upload", names: files.map(({ name }) => name) }, contents);
  }

  busy(on, text) {
    this.work.hidden = !on;
    this.workNote.textContent = text;
    this.run.disabled = this.explain.disabled = on;
    this.uploadButton.disabled = on || !this.host.kernel.abilities.uploads;
  }

  /** What the kernel says. */
  heard(message) {
    if (message.say === "progress") {
      this.busy(true, `${message.what}: ${message.done} of ${message.of}`);
      [this.progress.max, this.progress.value] = [message.of, message.done];
    } else {
      this.busy(false, "");
      this.tell(message.text, message.say === "error");
      if (message.show) this.set(message.show);
    }
  }

  tell(text, wrong = false) {
    this.message = text;
    this.status.textContent = text || this.summary;
    this.status.setAttribute("role", wrong ? "alert" : "status");
    this.status.classList.toggle("kv-wrong", wrong);
  }

  // -- saving

  async copyLink() {
    const address = this.host.link();
    try {
      await navigator.clipboard.writeText(address);
      this.tell("The address of this view is copied.");
    } catch {
      this.tell(`The address of this view: ${address}`);
    }
  }

  async save(kind) {
    const { data, layer, state } = this;
    const name = `${layer.name}-${data.names[state.a]}${state.b >= 0 ? `-${data.names[state.b]}` : ""}`.replace(/[^\w.-]+/g, "_").slice(0, 90);
    const makers = { svg: () => this.svg(), png: () => this.png(), csv: () => this.csv(), npz: () => this.npz() };
    try {
      const content = await makers[kind]();
      const url = URL.createObjectURL(content), link = h("a", { href: url, download: `${name}.${kind}` });
      this.root.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      this.tell(`Saved as ${name}.${kind}`);
    } catch (error) {
      this.tell(`Cannot save: ${error.message}`, true);
    }
  }

  /** The view as one drawing; images are embedded, maps are rectangles, text is text. */
  async svg() {
    const { data, layer, first, second, slots, place, values } = this, { kernel, channels } = layer, parts = [];
    const text = (x, y, words, size = 13, more = "") => parts.push(`<text x="${x}" y="${y}" font-size="${size}" ${more}>${escape(words)}</text>`);
    const map = (x, y, unit, pick, low, high, length = kernel[0] * kernel[1], width = kernel[1]) => {
      for (let p = 0; p < length; p += 1) {
        parts.push(`<rect x="${x + (p % width) * unit}" y="${y + Math.floor(p / width) * unit}" width="${unit}" height="${unit}" fill="${css(data.diverging, shade(pick(p), low, high))}"/>`);
      }
    };
    text(0, 22, `Attention in ${layer.name}`, 20, 'font-weight="600"');
    text(0, 44, `${data.title}; ${this.outcome ? `intervention: ${this.outcome.name}` : "the model's own attention"}; channels ${SORTS[this.state.sort] === "channel number" ? "by number" : `sorted by ${SORTS[this.state.sort]}`}`);
    let left = 0;
    for (const [who, { canvas }] of [[first, this.imageA], ...(this.state.b >= 0 ? [[second, this.imageB]] : [])]) {
      text(left, 72, `${who.name}: ${data.describe(who.image)}`.slice(0, 60), 13, 'font-weight="600"');
      parts.push(`<image x="${left}" y="80" width="150" height="${150 * canvas.height / canvas.width}" href="${canvas.toDataURL("image/png")}"/>`);
      this.ranking(who.image).forEach(({ index, now, before, label }, line) => {
        const y = 92 + 30 * line;
        text(left + 162, y, `${now.toFixed(2)} ${data.className(index)}${label ? " (true)" : ""}${before === undefined || before === null ? "" : `, before ${before.toFixed(2)}`}`, 12);
        parts.push(`<rect x="${left + 162}" y="${y + 5}" width="180" height="6" fill="#ddd"/><rect x="${left + 162}" y="${y + 5}" width="${180 * now}" height="6" fill="#0072b2"/>`);
      });
      left += 440;
    }
    data.layers.forEach((one, number) => {
      const mean = data.mean(one, first.image, first.outcome), even = 1 / mean.length, reach = Math.max(0.01, ...mean.map((v) => Math.abs(v / even - 1)));
      const x = number * 66, unit = 42 / Math.max(...one.kernel);
      map(x, 262, unit, (p) => mean[p], even * (1 - reach), even * (1 + reach), mean.length, one.kernel[1]);
      text(x, 318, one.name.split(".").slice(0, 2).join("."), 10, one === layer ? 'font-weight="700"' : "");
    });
    const { low, high, even } = this.scaleOf(layer), most = second ? farthest(values.difference) : 0;
    const grids = [[first.name, values.a, low, high, `1/${Math.round(1 / even)}`], ...(second ? [[second.name, values.b, low, high, `1/${Math.round(1 / even)}`], [`${first.name} − ${second.name}`, values.difference, -most, most, "0"]] : [])];
    const across = place.columns * (place.unit * kernel[1] + GAP) + 30, down = Math.ceil(slots.length / place.columns) * (place.unit * kernel[0] + GAP);
    grids.forEach(([name, maps, least, greatest, middle], number) => {
      const x0 = number * across;
      text(x0, 352, name, 13, 'font-weight="600"');
      slots.forEach((channel, slot) => map(x0 + (slot % place.columns) * (place.unit * kernel[1] + GAP), 362 + Math.floor(slot / place.columns) * (place.unit * kernel[0] + GAP),
        place.unit, (p) => maps[p * channels + channel], least, greatest));
      for (let level = 0; level < 64; level += 1) parts.push(`<rect x="${x0 + level * 3}" y="${372 + down}" width="3.2" height="10" fill="${css(data.diverging, level * 4 + 2)}"/>`);
      text(x0, 398 + down, fixed(least, 3), 11);
      text(x0 + 96, 398 + down, middle, 11, 'text-anchor="middle"');
      text(x0 + 192, 398 + down, fixed(greatest, 3), 11, 'text-anchor="end"');
    });
    const width = Math.max(880, grids.length * across, data.layers.length * 66), height = 420 + down;
    return new Blob([`<svg xmlns="http://www.w3.org/2000/svg" width="${width + 40}" height="${height + 40}" viewBox="-20 -20 ${width + 40} ${height + 40}" font-family="system-ui, sans-serif" fill="#1a1a1a">`
      + `<rect x="-20" y="-20" width="${width + 40}" height="${height + 40}" fill="#fff"/>${parts.join("")}</svg>`], { type: "image/svg+xml" });
  }

  async png() {
    const bytes = await (await this.svg()).text();
    const picture = h("img", { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(bytes)}` });
    await picture.decode();
    const canvas = h("canvas", { width: 2 * picture.naturalWidth, height: 2 * picture.naturalHeight });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  }

  csv() {
    const { data, layer, first, second, values } = this, quote = (word) => `"${String(word).replace(/"/g, '""')}"`;
    const rows = ["image,name,quantity,layer,channel,row,column,class,value"];
    for (const [who, maps] of [[first, values.a], ...(second ? [[second, values.b]] : [])]) {
      const start = `${quote(who.name)},${quote(data.names[who.image])}`;
      maps.forEach((value, index) => {
        const p = Math.floor(index / layer.channels);
        rows.push(`${start},attention,${quote(layer.name)},${index % layer.channels},${Math.floor(p / layer.kernel[1])},${p % layer.kernel[1]},,${value.toFixed(6)}`);
      });
      data.probabilities(who.image, who.outcome)?.forEach((value, index) =>
        rows.push(`${start},probability,,,,,${quote(data.className(index))},${value.toFixed(6)}`));
    }
    return new Blob([`${rows.join("\n")}\n`], { type: "text/csv" });
  }

  npz() {
    const { data, layer, first, second, values } = this, shape = [...layer.kernel, layer.channels];
    const files = { attention_a: npy(values.a, shape), channel_order: npy(Int32Array.from(this.order()), [layer.channels]) };
    if (second) Object.assign(files, { attention_b: npy(values.b, shape), difference: npy(values.difference, shape) });
    for (const [name, who] of [["a", first], ["b", second]]) {
      const probabilities = who && data.probabilities(who.image, who.outcome);
      if (probabilities) files[`probabilities_${name}`] = npy(probabilities, [probabilities.length]);
    }
    return new Blob([zip(files)], { type: "application/zip" });
  }
}

function drawScale(bar, colors, low, high, middle, unit) {
  const stops = Array.from({ length: 17 }, (_, i) => css(colors, Math.min(255, i * 16)));
  const key = `${low} ${high} ${middle} ${unit}`;
  if (bar.dataset.key === key) return;
  bar.dataset.key = key;
  const strip = h("i");
  strip.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  bar.replaceChildren(strip, h("span", {}, fixed(low, 3)), h("span", { class: "kv-middle" }, middle), h("span", {}, fixed(high, 3)), h("em", {}, unit));
}

function correlation(x, y) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length, [a, b] = [mean(x), mean(y)];
  const sum = (f) => x.reduce((total, _, i) => total + f(x[i] - a, y[i] - b), 0);
  return sum((u, v) => u * v) / (Math.sqrt(sum((u) => u * u) * sum((_, v) => v * v)) || 1);
}

// ---------------------------------------------------------------------------------------------- numpy's file formats

/** A typed array as the bytes of an .npy file. */
function npy(values, shape) {
  const type = values instanceof Int32Array ? "<i4" : "<f4";
  const text = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  const head = `${text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11)}\n`;
  const bytes = new Uint8Array(10 + head.length + values.byteLength);
  bytes.set([0x93, 78, 85, 77, 80, 89, 1, 0, head.length & 255, head.length >> 8]);
  bytes.set(new TextEncoder().encode(head), 10);
  bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + head.length);
  return bytes;
}

/** A zip archive whose files are stored as they are. */
function zip(files) {
  const local = [], central = [];
  let offset = 0;
  for (const [name, content] of Object.entries(files)) {
    const title = new TextEncoder().encode(`${name}.npy`), head = new DataView(new ArrayBuffer(26));
    head.setUint16(0, 20, true); // version; flags, method and time stay 0
    head.setUint16(8, 0x21, true); // the first of January 1980
    [[10, crc32(content)], [14, content.length], [18, content.length]].forEach(([at, value]) => head.setUint32(at, value, true));
    head.setUint16(22, title.length, true);
    const fields = new Uint8Array(head.buffer), entry = new Uint8Array(46 + title.length);
    entry.set([0x50, 0x4b, 1, 2, 20, 0]);
    entry.set(fields, 6);
    new DataView(entry.buffer).setUint32(42, offset, true);
    entry.set(title, 46);
    central.push(entry);
    local.push(Uint8Array.of(0x50, 0x4b, 3, 4), fields, title, content);
    offset += 30 + title.length + content.length;
  }
  const end = new DataView(new ArrayBuffer(22)), size = central.reduce((sum, entry) => sum + entry.length, 0);
  end.setUint32(0, 0x06054b50, true);
  [8, 10].forEach((at) => end.setUint16(at, central.length, true));
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  const parts = [...local, ...central, new Uint8Array(end.buffer)];
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => { whole.set(part, at); return at + part.length; }, 0);
  return whole;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

// ------------------------------------------------------------------------------------------------------- two homes

const bytesOf = (view) => new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);

/** In a notebook: anywidget calls this. */
function render({ model, el }) {
  const root = h("div");
  el.append(root);
  const explorer = new Explorer(root, {
    state: model.get("state"),
    keep: (state) => { model.set("state", state); model.save_changes(); },
    kernel: { abilities: model.get("abilities"), ask: (message, buffers) => model.send(message, undefined, buffers) },
  });
  const load = () => explorer.load([model.get("view_data"), ...model.get("extra_data")].map(bytesOf))
    .catch((error) => explorer.tell(`Cannot show this view: ${error.message}`, true));
  let loading = load();
  const reload = () => { loading = loading.then(load); };
  const hear = (message) => { loading = loading.then(() => explorer.heard(message)); };
  const follow = () => {
    const state = { ...START, ...model.get("state") };
    if (explorer.data && Object.keys(START).some((name) => state[name] !== explorer.state[name])) {
      explorer.state = state;
      explorer.draw();
    }
  };
  model.on("change:view_data change:extra_data", reload);
  model.on("change:state", follow);
  model.on("msg:custom", hear);
  return () => {
    model.off("change:view_data change:extra_data", reload);
    model.off("change:state", follow);
    model.off("msg:custom", hear);
    explorer.close();
  };
}

/** In a page: the packs stand in it, and what is chosen stands in the address. */
function mount(root, number) {
  const prefix = number ? `#explorer${number + 1}?` : "#explorer?";
  const read = () => (location.hash.startsWith(prefix) ? Object.fromEntries(new URLSearchParams(location.hash.slice(prefix.length))) : null);
  const packs = [...root.querySelectorAll("script")].map((script) => Uint8Array.from(atob(script.textContent.trim()), (sign) => sign.charCodeAt(0)));
  const explorer = new Explorer(root, {
    state: read() ?? JSON.parse(root.dataset.state || "{}"),
    keep: (state) => {
      const address = prefix + new URLSearchParams(state);
      try { history.replaceState(null, "", address); } catch { location.hash = address; }
    },
    link: () => location.href,
    kernel: null,
  });
  window.addEventListener("hashchange", () => {
    const state = read();
    if (!state || !explorer.data) return;
    explorer.state = { ...START, ...state };
    explorer.draw();
  });
  explorer.load(packs).catch((error) => explorer.tell(`Cannot show this view: ${error.message}`, true));
}

document.querySelectorAll("[data-kaviz-explorer]").forEach(mount);

export default { render };
