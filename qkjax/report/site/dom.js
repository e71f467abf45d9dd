// Elements, and how numbers are written.

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function number(x, digits = 3) {
  return Number.isFinite(x) ? String(Number(x.toPrecision(digits))) : "not defined";
}

function percent(x) {
  return Number.isFinite(x) ? `${(100 * x).toFixed(1).replace(/^-0\.0$/, "0.0")}%` : "not defined";
}

function list(pairs) {
  return h(
    "dl",
    {},
    pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}
