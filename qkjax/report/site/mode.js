// One mode: its best images for both signs, and the maps of one of them, patch by patch.

async function modeView(c, model) {
  const { layer, head, mode, sign, tile } = c.place;
  const { modes, heads, look, commands } = model.facts;
  const at = (layer * heads + head) * modes + mode;
  const [data, { facts }] = await Promise.all([load(headKey(model, layer, head)), load(`${model.key}/names`)]);
  const both = [1, -1].map((side) => [side, tilesOf(model, data, mode, side)]);
  const own = both.find(([side]) => side === sign)[1];
  const chosen = own[Math.min(tile, own.length - 1)];
  const total = model.singular_value.subarray(at - mode, at - mode + modes).reduce((sum, x) => sum + x, 0);
  const cosine = model.cosine[at];
  return [
    h("h2", {}, modeName(c.place)),
    steppers(c, ["mode", "head", "layer"]),
    list([
      ["strength s", number(model.singular_value[at])],
      [
        "cosine of u and v",
        h(
          "span",
          {},
          h("span", { class: "swatch", style: `background: ${cosineColour(cosine)}` }),
          number(cosine),
          model.degenerate[at] ? " (degenerate: not defined by itself)" : "",
        ),
      ],
      ["share of strength", percent(model.singular_value[at] / total)],
      [`share of logits, ${look.length} images`, percent(shareOf(model, layer, head, mode))],
    ]),
    chosen ? await large(c, model, chosen, facts.names[chosen.image]) : h("p", {}, "No image excites this mode."),
    h(
      "div",
      { class: "columns" },
      both.map(([side, tiles]) => sheet(c, model, side, tiles, facts.names, chosen)),
    ),
    h(
      "p",
      { class: "hint" },
      "Red is where the mode asks (query map), cyan where it is asked for (key map), white both; each map ",
      "from its 30th to its 95th percentile. (u, v) and (-u, -v) are one mode: a + image is high on both ",
      "maps, a - image low, and shown negated.",
    ),
    h(
      "section",
      {},
      h("h3", {}, "This mode elsewhere"),
      link(c),
      h(
        "pre",
        { tabindex: 0 },
        h(
          "code",
          {},
          `${commands.modes} "${modeName(c.place)}"\n`,
          `${commands.ablate} "layers=${layer} heads=${head} modes=${mode}"`,
        ),
      ),
    ),
  ];
}

function link(c) {
  const said = h("output", { "aria-live": "polite" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      said.textContent = "copied";
    } catch {
      said.textContent = location.href; // a page opened from disk may not be let near the clipboard
    }
  };
  return h(
    "p",
    {},
    h("button", { type: "button", id: c.id("link"), onclick: copy }, "Copy the link to this view"),
    " ",
    said,
  );
}

function sheet(c, model, side, tiles, names, chosen) {
  const { grid } = model.facts;
  return h(
    "section",
    { class: "sheet" },
    h("h3", {}, `Best images, sign ${side > 0 ? "+" : "-"}`),
    h(
      "ol",
      {},
      tiles.map((tile) => {
        const canvas = hidden(canvasOf(model, 160, ""));
        if (!tile.gone)
          picture(model, `pictures/${tile.image}.webp`).then((image) =>
            draw.overlay(canvas, grid, image, tile.query, tile.key),
          );
        const label = `${names[tile.image]}, score ${number(tile.score)}${tile.gone ? ", can no longer be read" : ""}`;
        return h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              id: c.id(`tile${side}-${tile.place}`),
              "aria-label": label,
              title: label,
              "aria-pressed": String(tile === chosen),
              onclick: () => c.go({ sign: side, tile: tile.place }),
            },
            canvas,
            h("span", {}, tile.gone ? "not readable" : number(tile.score)),
          ),
        );
      }),
    ),
  );
}

async function large(c, model, tile, name) {
  const { grid } = model.facts;
  if (tile.gone) return h("p", {}, `${name} can no longer be read: it was there when the images were scanned.`);
  const image = await picture(model, `pictures/${tile.image}.webp`);
  const read = h(
    "output",
    { "aria-live": "polite", class: "read", id: c.id("read") },
    "Point at a patch to read its values; or give a picture the focus and use the arrow keys.",
  );
  const kinds = [
    ["picture", (canvas) => draw.plain(canvas, grid, image)],
    ["both maps", (canvas) => draw.overlay(canvas, grid, image, tile.query, tile.key)],
    ["query map", (canvas) => draw.signed(canvas, grid, tile.query)],
    ["key map", (canvas) => draw.signed(canvas, grid, tile.key)],
  ];
  const boxes = [];
  const onpoint = (row, column) => {
    const i = row * grid[1] + column;
    boxes.forEach((box) => box.mark(row, column));
    read.textContent = `row ${row}, column ${column}: query ${number(tile.query[i], 4)}, key ${number(tile.key[i], 4)}`;
  };
  const figures = kinds.map(([title, paint]) => {
    const canvas = canvasOf(model, 320, `${title} of ${name}`);
    paint(canvas);
    boxes.push(
      pointable(canvas, grid, {
        id: c.id(`large-${title.replace(" ", "-")}`),
        label: `${title} of ${name}: arrow keys move over patches`,
        onpoint,
      }),
    );
    return h("figure", {}, boxes.at(-1), h("figcaption", {}, title));
  });
  return h(
    "section",
    { class: "large" },
    h("h3", {}, name, " ", h("small", {}, `score ${number(tile.score)}`)),
    h("div", { class: "four" }, figures),
    read,
    scaleBar(SIGNED, "negative", "positive", "query and key map, white is 0, each to its largest size"),
  );
}
