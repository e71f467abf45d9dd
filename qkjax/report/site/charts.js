// Curves and bars, drawn at the width that there is, so that their words stay readable.

const INK = { weighted: "var(--first)", plain: "var(--second)", other: "var(--third)" };
const MARGIN = { left: 46, right: 10, top: 10, bottom: 38 };

function frame(width, height, xs, ys, xLabel, yLabel, title) {
  const x = (v) => MARGIN.left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (width - MARGIN.left - MARGIN.right);
  const y = (v) =>
    height - MARGIN.bottom - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * (height - MARGIN.top - MARGIN.bottom);
  const root = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    "aria-label": title,
    class: "chart",
  });
  for (const tick of ticks(...ys, 5)) {
    root.append(
      svg("line", {
        x1: MARGIN.left,
        x2: width - MARGIN.right,
        y1: y(tick),
        y2: y(tick),
        class: tick === 0 ? "zero" : "grid",
      }),
    );
    root.append(svg("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of ticks(...xs, width / 45).filter(Number.isInteger)) {
    root.append(svg("text", { x: x(tick), y: height - MARGIN.bottom + 16, "text-anchor": "middle" }, String(tick)));
  }
  root.append(
    svg("text", { x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
  );
  root.append(
    svg(
      "text",
      { transform: `translate(11 ${(height - MARGIN.bottom + MARGIN.top) / 2}) rotate(-90)`, "text-anchor": "middle" },
      yLabel,
    ),
  );
  return { root, x, y };
}

function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(wanted, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

function curve({ x, y }, points, colour, dash) {
  const known = points.filter(([, value]) => Number.isFinite(value));
  return svg("polyline", {
    points: known.map(([a, b]) => `${x(a)},${y(b)}`).join(" "),
    fill: "none",
    stroke: colour,
    "stroke-width": 2,
    "stroke-dasharray": dash,
  });
}

/** A legend: lines with their dashes, and, where these are a number, bands of that opacity. */
function key(items) {
  const sample = (colour, dash) => {
    const band = typeof dash === "number";
    const drawn = band
      ? { "stroke-width": 10, "stroke-opacity": dash }
      : { "stroke-width": 2, "stroke-dasharray": dash };
    const line = svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, ...drawn });
    return svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, line);
  };
  return h(
    "p",
    { class: "key" },
    items.map(([colour, dash, text]) => h("span", {}, sample(colour, dash), ` ${text}`)),
  );
}
