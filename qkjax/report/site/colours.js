// Scales that are told apart with any colour vision (ColorBrewer's RdBu and PuOr, and cividis).

const COSINE = [
  "#053061",
  "#2166ac",
  "#4393c3",
  "#92c5de",
  "#d1e5f0",
  "#f7f7f7",
  "#fddbc7",
  "#f4a582",
  "#d6604d",
  "#b2182b",
  "#67001f",
];
const SIGNED = [
  "#2d004b",
  "#542788",
  "#8073ac",
  "#b2abd2",
  "#d8daeb",
  "#f7f7f7",
  "#fee0b6",
  "#fdb863",
  "#e08214",
  "#b35806",
  "#7f3b08",
];
const AMOUNT = [
  "#00224e",
  "#123570",
  "#3b496c",
  "#575d6d",
  "#707173",
  "#8a8678",
  "#a59c74",
  "#c3b369",
  "#e1cc55",
  "#fee838",
];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const STOPS = new Map([COSINE, SIGNED, AMOUNT].map((scale) => [scale, scale.map(rgb)]));

/** Red, green and blue of x on a scale, x from 0 to 1. */
function mixed(scale, x) {
  const stops = STOPS.get(scale);
  const at = Math.min(Math.max(Number.isFinite(x) ? x : 0.5, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (at - low) * (stops[low + 1][i] - value)));
}

const cosineColour = (cosine) => (Number.isFinite(cosine) ? `rgb(${mixed(COSINE, (cosine + 1) / 2)})` : "transparent");

function scaleBar(scale, low, high, title) {
  const stops = scale.map((colour, i) => `${colour} ${(100 * i) / (scale.length - 1)}%`).join(", ");
  return h(
    "div",
    { class: "scale" },
    h("span", {}, low),
    h("span", { class: "bar", style: `background: linear-gradient(to right, ${stops})` }),
    h("span", {}, high),
    h("span", { class: "what" }, title),
  );
}
