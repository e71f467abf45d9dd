// The whole model: its card, cosines by layer, a map of its heads.

function meanOver(values, layer, heads) {
  const own = Array.from(values.subarray(layer * heads, (layer + 1) * heads)).filter(Number.isFinite);
  return own.reduce((sum, x) => sum + x, 0) / own.length;
}

const BANDS = { head: 0.2, layer: 0.45 };

function cosineChart(model, other, width) {
  const { layers, heads, null: chance } = model.facts;
  const range = [...Array(layers).keys()];
  const means = (values) => range.map((layer) => [layer, meanOver(values, layer, heads)]);
  const weighted = means(model.weighted_cosine);
  const plain = means(model.mean_cosine);
  const across = other
    ? [...Array(other.facts.layers).keys()].map((layer) => [
        (layer * (layers - 1)) / Math.max(other.facts.layers - 1, 1),
        meanOver(other.weighted_cosine, layer, other.facts.heads),
      ])
    : [];
  const all = [
    ...model.weighted_cosine,
    ...plain.map((p) => p[1]),
    ...across.map((p) => p[1]),
    -chance.head_weighted_cosine,
    chance.head_weighted_cosine,
  ].filter(Number.isFinite);
  const ys = [Math.min(...all, 0) - 0.03, Math.max(...all) + 0.03];
  const axes = frame(
    width,
    Math.min(320, Math.max(220, width * 0.5)),
    [-0.3, layers - 0.7],
    ys,
    "layer",
    "cosine of u and v",
    "Cosine of query and key directions by layer",
  );
  const { root, x, y } = axes;
  for (const [half, opacity] of [
    [chance.head_weighted_cosine, BANDS.head],
    [chance.weighted_cosine, BANDS.layer],
  ]) {
    const [left, top] = [x(-0.3), y(half)];
    const size = { width: x(layers - 0.7) - left, height: y(-half) - top };
    root.append(svg("rect", { x: left, y: top, ...size, fill: "var(--quiet)", "fill-opacity": opacity }));
  }
  for (const layer of range) {
    for (let head = 0; head < heads; head++) {
      const value = model.weighted_cosine[layer * heads + head];
      if (Number.isFinite(value))
        root.append(svg("circle", { cx: x(layer), cy: y(value), r: 2.5, fill: INK.weighted, "fill-opacity": 0.45 }));
    }
  }
  root.append(curve(axes, plain, INK.plain, "6 4"), curve(axes, weighted, INK.weighted));
  if (other) root.append(curve(axes, across, INK.other, "2 3"));
  const items = [
    [INK.weighted, null, "weighted by strength, and each head"],
    [INK.plain, "6 4", "plain mean of modes"],
    ["var(--quiet)", BANDS.layer, "95% of chance, mean of a layer"],
    ["var(--quiet)", BANDS.head, "and a single head"],
  ];
  if (other) items.push([INK.other, "2 3", `${other.facts.name}, weighted, at the same relative depth`]);
  return h("figure", {}, root, h("figcaption", {}, key(items)));
}

function headMap(c, model) {
  const { layers, heads } = model.facts;
  const corner = h("span", { class: "corner" }, "");
  const cells = [corner, ...[...Array(layers).keys()].map((layer) => h("span", { class: "label" }, String(layer)))];
  for (let head = 0; head < heads; head++) {
    cells.push(h("span", { class: "label" }, String(head)));
    for (let layer = 0; layer < layers; layer++) {
      const cosine = model.weighted_cosine[layer * heads + head];
      const label = `layer ${layer}, head ${head}: weighted cosine ${number(cosine)}`;
      cells.push(
        h("a", {
          class: "cell",
          href: c.href({ view: "head", layer, head }),
          id: c.id(`cell-${layer}-${head}`),
          style: `background: ${cosineColour(cosine)}`,
          title: label,
          "aria-label": label,
        }),
      );
    }
  }
  return h(
    "div",
    {},
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "group", "aria-label": "heads" },
      h("div", { class: "headmap", style: `grid-template-columns: 1.6em repeat(${layers}, minmax(24px, 1fr))` }, cells),
    ),
    h("p", { class: "hint" }, "Layers across, heads down. Choose a cell to open the head."),
    scaleBar(COSINE, "-1 others", "1 similar", "weighted cosine"),
  );
}

async function overviewView(c, model) {
  const { card, scan, versions } = model.facts;
  const made = Object.entries(versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(", ");
  return [
    h("h2", {}, model.facts.name),
    h(
      "div",
      { class: "columns" },
      h("section", {}, h("h3", {}, "Cosine by layer"), cosineChart(model, c.other, c.half)),
      h("section", {}, h("h3", {}, "Heads"), headMap(c, model)),
    ),
    h(
      "section",
      { class: "card" },
      h("h3", {}, "Model"),
      list([
        ...card,
        ["images", `${scan.count} of ${scan.images}, scored by ${scan.score}, stream: ${scan.stream}`],
        ["made with", made],
      ]),
    ),
    h(
      "p",
      { class: "hint" },
      "A mode of a head is a query direction u, a key direction v and a strength s: a pair of tokens gets s ",
      "(y_i u)(y_j v) / sqrt(d) from it. Where cos(u, v) is near 1, a token attends to tokens like itself; ",
      "near 0 or below, to others.",
    ),
  ];
}
