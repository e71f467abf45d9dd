// How a head depends on position, for models with rotary positions.

/** Names and values for the list of measures. */
function positionFacts(model, at) {
  if (!model.position_share) return [];
  const { distances, share, share_width: width, cosine_width: widths } = model.facts.positions;
  const last = distances.length - 1;
  const cosine = (place) => number(model.distance_cosine[at * distances.length + place]);
  const chance = `${percent(share - width)} to ${percent(share + width)}`;
  return [
    ["depends on position", `${percent(model.position_share[at])} (95% of chance: ${chance})`],
    ["weighted cosine, same place", `${cosine(0)} (95% of chance: ±${number(widths[0])})`],
    [`weighted cosine, ${distances[last]} patches apart`, `${cosine(last)} (±${number(widths[last])})`],
  ];
}

function distanceChart(model, at, width) {
  const { distances, cosine_width: widths } = model.facts.positions;
  const points = distances.map((distance, i) => [distance, model.distance_cosine[at * distances.length + i]]);
  const all = [...points.map((point) => point[1]), ...widths, ...widths.map((half) => -half)].filter(Number.isFinite);
  const last = distances[distances.length - 1];
  const axes = frame(
    width,
    220,
    [0, last],
    [Math.min(...all) - 0.03, Math.max(...all) + 0.03],
    "distance between query and key in patches",
    "weighted cosine",
    "Weighted cosine of the interaction against the distance between query and key",
  );
  const edge = (sign) => distances.map((distance, i) => `${axes.x(distance)},${axes.y(sign * widths[i])}`);
  const band = [...edge(1), ...edge(-1).reverse()].join(" ");
  axes.root.append(svg("polygon", { points: band, fill: "var(--quiet)", "fill-opacity": BANDS.head }));
  axes.root.append(curve(axes, points, INK.weighted));
  const items = [
    [INK.weighted, null, "mean over directions"],
    ["var(--quiet)", BANDS.head, "95% of chance, a single head"],
  ];
  return h("figure", {}, axes.root, h("figcaption", {}, key(items)));
}

/** The weighted cosine of every offset, query minus key: in the right half, the query is to the right of the key. */
function offsetMap(model, at) {
  const [rows, columns] = model.facts.positions.offsets;
  const steps = model.offset_cosine.subarray(at * rows * columns, (at + 1) * rows * columns);
  const size = Math.max(1, Math.min(Math.floor(280 / columns), Math.floor(280 / rows)));
  const text = "Weighted cosine for every offset of the query from the key";
  const root = svg("svg", { width: columns * size, height: rows * size, role: "img", "aria-label": text });
  steps.forEach((step, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const cosine = step === -128 ? Number.NaN : step / 127;
    const offset = `query ${row - (rows - 1) / 2} rows below, ${column - (columns - 1) / 2} columns right of the key`;
    const fill = cosineColour(cosine);
    const cell = { x: column * size, y: row * size, width: size, height: size, fill };
    root.append(svg("rect", cell, svg("title", {}, `${offset}: ${number(cosine, 2)}`)));
  });
  const bar = scaleBar(COSINE, "-1", "1", "weighted cosine by offset, query minus key; the centre is the same place");
  return h("figure", { class: "offsets" }, root, h("figcaption", {}, bar));
}

function positionCharts(model, at, width) {
  if (!model.position_share) return [];
  return [
    h(
      "div",
      { class: "columns" },
      h("section", {}, h("h3", {}, "Cosine against distance"), distanceChart(model, at, width)),
      model.offset_cosine && h("section", {}, h("h3", {}, "Cosine for every offset"), offsetMap(model, at)),
    ),
  ];
}
