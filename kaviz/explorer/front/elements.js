// Elements of the page, and numbers as they are written there.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A copy of what stands in a `<template>` of explorer.html. */
export const copyOf = (template) => document.importNode(template.content.firstElementChild, true);

/** Give an element new children, if what they are made of is not what it was. */
export function renew(element, of, make) {
  const made = JSON.stringify(of);
  if (element.dataset.made === made) return false;
  element.dataset.made = made;
  element.replaceChildren(...make());
  return true;
}

/** Choose a value in a control; the first of a list that does not have it. */
export function choose(control, value) {
  control.value = value;
  if (control.selectedIndex < 0) control.selectedIndex = 0;
}

/** What is under the pointer, in words and numbers. */
export const report = (output, title, line, more = "") =>
  output.replaceChildren(h("b", {}, title), line, h("small", {}, more));

/** The steps of the arrow keys, to the right and down. */
export const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

/** A whole number between two; the lowest for what is no number. */
export function whole(value, low, high) {
  return Number.isFinite(Number(value)) ? Math.max(low, Math.min(high, Math.trunc(value))) : low;
}

export const fixed = (value, digits = 4) => value.toFixed(digits).replace("-", "−");
export const signed = (value, digits = 4) => (value > 0 ? "+" : "") + fixed(value, digits);
export const brief = (value, digits = 3) =>
  (value > 0 ? "+" : "") + String(Number(value.toPrecision(digits))).replace("-", "−");
