// The controls: what each list offers, what is chosen, and what is of no use.

import { choose, h, renew } from "./elements.js";

const called = (all, key) => all.map((one) => [one[key], one[key]]);

/** Lists whose options, [value, text], depend on the data. The last four are there with a kernel alone. */
const LISTS = {
  class: ({ data }) => [["", "all"], ...data.known.map((label) => [String(label), data.classes[label]])],
  method: ({ data: { attributions } }) =>
    [["", attributions.length ? "none" : "none computed"], ...called(attributions, "method")],
  outcome: ({ data }) => [["", "the model's own"], ...called(data.outcomes, "name")],
  positions: ({ data }) => called(data.contributions, "method"),
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
  next: ({ state, regions }) => state.page === regions.channels.pages - 1,
  spot: ({ abilities, ui }) => !abilities.of_a_position.includes(ui.kind.value),
  run: ({ kernel }) => kernel.working,
  explain: ({ kernel }) => kernel.working,
  upload: ({ abilities, kernel }) => kernel.working || !abilities.uploads,
};

export function drawControls(explorer) {
  const { state, ui } = explorer;
  for (const [name, options] of Object.entries(LISTS)) if (ui[name]) fill(ui[name], options(explorer));
  for (const [name, value] of Object.entries(state)) {
    if (ui[name] && ui[name].value !== String(value)) choose(ui[name], value);
  }
  for (const option of ui.sort.options) option.disabled = !explorer.canSortBy(option.value);
  const focused = document.activeElement;
  for (const [name, test] of Object.entries(IDLE)) if (ui[name]) ui[name].disabled = test(explorer);
  // Else the focus would be lost: keys would go nowhere, and the next click would find JupyterLab busy with taking it.
  if (focused?.disabled) focused.closest("[role=group], .kv-controls")?.querySelector(":enabled")?.focus();
  const [attention, sorted] = [ui.outcome, ui.sort].map(({ selectedOptions: [{ text }] }) => text);
  ui.chosen.textContent = `${explorer.layer.name} · attention: ${attention} · sorted by ${sorted}`;
}

/** Give a list its options; what is chosen stays, if it is still there. */
function fill(select, options) {
  const { value } = select;
  const make = () => options.map(([key, text]) => h("option", { value: key }, text));
  if (renew(select, options, make)) select.disabled = options.length < 2;
  choose(select, value);
}
