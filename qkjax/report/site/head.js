// One head: its spectrum, and its modes with the image that each likes best.

function spectrum(c, model, layer, head, width) {
  const { modes, shown, heads } = model.facts;
  const from = (layer * heads + head) * modes;
  const s = model.singular_value.subarray(from, from + modes);
  const cosine = model.cosine.subarray(from, from + modes);
  const { root, x, y } = frame(
    width,
    220,
    [-0.7, modes - 0.3],
    [0, (s[0] || 1) * 1.05],
    "mode",
    "singular value",
    `Singular values of layer ${layer}, head ${head}, coloured by cosine`,
  );
  root.setAttribute("role", "group"); // its bars are links
  const wide = Math.max(1.5, (x(1) - x(0)) * 0.8);
  for (let mode = 0; mode < modes; mode++) {
    const bar = svg("rect", {
      x: x(mode) - wide / 2,
      y: y(s[mode]),
      width: wide,
      height: Math.max(y(0) - y(s[mode]), 1),
      fill: cosineColour(cosine[mode]),
      stroke: "var(--edge)",
      "stroke-width": 0.6,
    });
    const label = `mode ${mode}: strength ${number(s[mode])}, cosine ${number(cosine[mode])}`;
    root.append(
      mode < shown
        ? svg(
            "a",
            { href: c.href({ view: "mode", mode }), "aria-label": label, tabindex: -1 },
            bar,
            svg("title", {}, label),
          )
        : bar,
    );
  }
  return h("figure", {}, root, h("figcaption", {}, scaleBar(COSINE, "-1", "1", "cosine of the mode")));
}

function shareOf(model, layer, head, mode) {
  return model.share[(layer * model.facts.heads + head) * model.facts.modes + mode];
}

/** Maps, scores and images of one sign of a mode, best first; for sign -1 both maps negated: high is what it likes. */
function tilesOf(model, data, mode, sign) {
  const { places, grid } = model.facts;
  const patches = grid[0] * grid[1];
  const found = [];
  for (let place = 0; place < places; place++) {
    const at = (mode * 2 + (sign > 0 ? 0 : 1)) * places + place;
    if (data.image_index[at] < 0) continue;
    const map = (name) =>
      Float64Array.from(data[`${name}_map`].subarray(at * patches, (at + 1) * patches), (value) =>
        value ? sign * value * data[`${name}_step`][at] : 0,
      );
    const image = data.image_index[at];
    const gone = model.facts.gone.includes(image);
    found.push({ place, image, gone, score: data.value[at], query: map("query"), key: map("key") });
  }
  return found;
}

async function headView(c, model) {
  const { layer, head } = c.place;
  const { modes, shown, heads, grid } = model.facts;
  const at = layer * heads + head;
  const data = await load(headKey(model, layer, head));
  const cards = [];
  for (let mode = 0; mode < shown; mode++) {
    const s = model.singular_value[at * modes + mode];
    const cosine = model.cosine[at * modes + mode];
    const canvas = hidden(canvasOf(model, 120, ""));
    const [best] = [1, -1]
      .map((sign) => ({ sign, tile: tilesOf(model, data, mode, sign)[0] }))
      .filter((x) => x.tile && !x.tile.gone)
      .sort((a, b) => b.tile.score - a.tile.score);
    if (best)
      picture(model, `pictures/${best.tile.image}.webp`).then((image) =>
        draw.overlay(canvas, grid, image, best.tile.query, best.tile.key),
      );
    cards.push(
      h(
        "li",
        {},
        h(
          "a",
          { href: c.href({ view: "mode", mode, sign: best?.sign ?? 1 }), id: c.id(`mode-${mode}`) },
          canvas,
          h("b", {}, `M${mode}`, model.degenerate[at * modes + mode] ? " (degenerate)" : ""),
          h("span", {}, `strength ${number(s)}`),
          h(
            "span",
            {},
            h("span", { class: "swatch", style: `background: ${cosineColour(cosine)}` }),
            `cosine ${number(cosine, 2)}`,
          ),
          h("span", {}, `${percent(shareOf(model, layer, head, mode))} of logits`),
        ),
      ),
    );
  }
  return [
    h("h2", {}, `Layer ${layer}, head ${head}`),
    steppers(c, ["head", "layer"]),
    h(
      "div",
      { class: "columns" },
      h("section", {}, h("h3", {}, "Spectrum"), spectrum(c, model, layer, head, c.half)),
      h(
        "section",
        {},
        h("h3", {}, "Measures"),
        list([
          ["weighted cosine", number(model.weighted_cosine[at])],
          ["plain mean cosine", number(model.mean_cosine[at])],
          ["effective rank", number(model.effective_rank[at])],
          ["stable rank", number(model.stable_rank[at])],
          ["symmetric share", percent(model.symmetric_share[at])],
          ["key bias, relative spread", number(model.key_bias[at])],
          ["key bias, share of logits", percent(model.bias_share[at])],
          ...positionFacts(model, at),
        ]),
      ),
    ),
    ...positionCharts(model, at, c.half),
    h(
      "section",
      {},
      h("h3", {}, shown < modes ? `The first ${shown} of ${modes} modes` : "Modes"),
      h("ol", { class: "cards" }, cards),
      h(
        "p",
        { class: "hint" },
        "Each with the image that it likes best. Of logits: the share of their variance over keys, mean over the ",
        `${model.facts.look.length} images under "Image"; negative where a mode works against the sum of all.`,
      ),
    ),
  ];
}

/** Links to the modes, heads and layers next to this one. */
function steppers(c, kinds) {
  const counts = {
    mode: c.models[c.place.model].facts.shown,
    head: c.models[c.place.model].facts.heads,
    layer: c.models[c.place.model].facts.layers,
  };
  const keys = {
    mode: "left and right arrow keys",
    head: kinds.includes("mode") ? "shift, and left and right arrow keys" : "left and right arrow keys",
    layer: "shift, and up and down arrow keys",
  };
  return h(
    "nav",
    { class: "steppers", "aria-label": c.label("next to this one") },
    kinds.map((kind) =>
      h(
        "span",
        { title: keys[kind] },
        [-1, 1].map((step) => {
          const stays = clamp(c.place[kind] + step, counts[kind]) === c.place[kind];
          const text = step < 0 ? `‹ ${kind}` : `${kind} ›`;
          return h(
            "button",
            {
              type: "button",
              id: c.id(`${kind}${step}`),
              "aria-disabled": stays ? "true" : null, // it keeps the focus, as a disabled one does not
              "aria-label": `${step < 0 ? "previous" : "next"} ${kind}`,
              onclick: () => c.step(kind, step),
            },
            text,
          );
        }),
      ),
    ),
  );
}
