// One image: where a patch attends, in every head, and which modes make it so.

/** The logits of one query to all keys, less what is the same for all of them; and what each mode adds. */
function logitsOf(data, model, head, token) {
  const { modes, special, grid } = model.facts;
  const tokens = special.length + grid[0] * grid[1];
  const logits = Float64Array.from(data.bias.subarray(head * tokens, (head + 1) * tokens));
  const terms = [];
  for (let mode = 0; mode < modes; mode++) {
    const steps = data.query_step[head * modes + mode] * data.key_step[head * modes + mode];
    const query = data.query[(head * tokens + token) * modes + mode] * steps;
    const term = new Float64Array(tokens);
    for (let key = 0; key < tokens; key++)
      logits[key] += term[key] = query * data.key[(head * tokens + key) * modes + mode];
    terms.push(term);
  }
  if (data.other.length) {
    const from = (head * tokens + token) * tokens;
    for (let key = 0; key < tokens; key++) logits[key] += data.other[from + key] * data.other_step[head];
  }
  return { logits, terms };
}

/** The keys that the query direction of a mode attends to from the place of a token, with rotary positions. */
function keysFrom(data, model, head, mode, token) {
  const { modes, special, grid } = model.facts;
  const tokens = special.length + grid[0] * grid[1];
  const planes = model.angles.length / tokens;
  const own = data.direction.subarray((head * modes + mode) * 2 * planes);
  const rotated = new Float64Array(2 * planes);
  for (let plane = 0; plane < planes; plane++) {
    const angle = model.angles[token * planes + plane];
    const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
    rotated[plane] = own[plane] * cosine - own[planes + plane] * sine;
    rotated[planes + plane] = own[planes + plane] * cosine + own[plane] * sine;
  }
  for (let c = 0; c < 2 * planes; c++) rotated[c] *= data.places_step[head * 2 * planes + c];
  const keys = new Float64Array(tokens);
  for (let key = 0; key < tokens; key++)
    for (let c = 0; c < 2 * planes; c++) keys[key] += rotated[c] * data.places[(head * tokens + key) * 2 * planes + c];
  return keys.map((x) => x * data.direction_step[head * modes + mode]);
}

function softmax(logits) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((x) => Math.exp(x - most));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / total);
}

/** The share of a term in what the logits of this query differ by between keys, all keys alike. */
function sharesOf(terms, logits) {
  const mean = (x) => x.reduce((a, b) => a + b) / x.length;
  const centre = mean(logits);
  const pull = logits.map((x) => x - centre);
  const variance = pull.reduce((sum, x) => sum + x * x, 0);
  return terms.map((term) => pull.reduce((sum, x, i) => sum + x * term[i], 0) / variance);
}

async function lookView(c, model) {
  const { look, special, grid, layers, heads } = model.facts;
  const { image, token, layer, head } = c.place;
  const photo = await picture(model, `look${image}.webp`);
  const canvas = canvasOf(model, 400, look[image]);
  draw.plain(canvas, grid, photo);
  const read = h("output", { "aria-live": "polite", class: "read" });
  const words = (row, column) => `row ${row}, column ${column}`;
  const pick = (row, column) => c.go({ token: special.length + row * grid[1] + column }, true);
  const box = pointable(canvas, grid, {
    id: c.id("pick"),
    label: `${look[image]}: arrow keys and Enter choose a patch`,
    onpoint: (row, column) => {
      box.mark(row, column);
      read.textContent = words(row, column);
    },
    onpick: pick,
  });
  const patch = token - special.length;
  const chosen = patch < 0 ? special[token] : words(Math.floor(patch / grid[1]), patch % grid[1]);
  if (patch >= 0) {
    box.mark(Math.floor(patch / grid[1]), patch % grid[1]);
    box.start(Math.floor(patch / grid[1]), patch % grid[1]);
  }
  read.textContent = `chosen: ${chosen}`;
  const detail = h("section", { class: "detail" });
  const cells = [h("span", {}), ...[...Array(heads).keys()].map((x) => h("span", { class: "label" }, String(x)))];
  for (let l = 0; l < layers; l++) {
    const canvases = [...Array(heads).keys()].map(() => hidden(canvasOf(model, 48, "")));
    cells.push(
      h("span", { class: "label" }, String(l)),
      ...canvases.map((small, k) =>
        h(
          "button",
          {
            type: "button",
            id: c.id(`at-${l}-${k}`),
            "aria-label": `layer ${l}, head ${k}`,
            "aria-pressed": String(l === layer && k === head),
            onclick: () => c.go({ layer: l, head: k }, true),
          },
          small,
        ),
      ),
    );
    load(`${model.key}/look${image}_L${two(l)}`).then(
      (data) =>
        canvases.forEach((small, k) =>
          draw.amount(small, grid, softmax(logitsOf(data, model, k, token).logits).subarray(special.length)),
        ),
      (error) => console.warn(error.message),
    );
  }
  try {
    // Waited for, or the page would be short for a moment, and scroll away.
    detail.append(...lookDetail(c, model, await load(`${model.key}/look${image}_L${two(layer)}`), photo));
  } catch (error) {
    detail.append(h("p", { role: "alert" }, error.message));
  }
  return [
    h("h2", {}, `Where does a patch attend? ${look[image]}`),
    look.length > 1
      ? h(
          "p",
          { class: "choices" },
          look.map((name, i) =>
            h(
              "button",
              {
                type: "button",
                id: c.id(`image-${i}`),
                "aria-pressed": String(i === image),
                onclick: () => c.go({ image: i }),
              },
              name,
            ),
          ),
        )
      : null,
    h(
      "div",
      { class: "columns" },
      h(
        "section",
        {},
        h("h3", {}, "Choose a patch"),
        h("div", { class: "photo" }, box),
        read,
        special.length
          ? h(
              "p",
              { class: "choices" },
              "or ",
              special.map((name, i) =>
                h(
                  "button",
                  {
                    type: "button",
                    id: c.id(`special-${i}`),
                    "aria-pressed": String(i === token),
                    onclick: () => c.go({ token: i }, true),
                  },
                  name,
                ),
              ),
            )
          : null,
        h("h3", {}, "All heads"),
        h(
          "p",
          { class: "hint" },
          "Attention of the chosen patch over the image; layers down, heads across, each map to its own maximum. ",
          "Choose one to see its modes.",
        ),
        h(
          "div",
          { class: "scroll", tabindex: 0, role: "group", "aria-label": "attention in all heads" },
          h(
            "div",
            { class: "attmap", style: `grid-template-columns: 1.6em repeat(${heads}, minmax(26px, 64px))` },
            cells,
          ),
        ),
        scaleBar(AMOUNT, "0", "most", "attention"),
      ),
      detail,
    ),
  ];
}

function lookDetail(c, model, data, photo) {
  const { special, grid, look } = model.facts;
  const { layer, head, token, image } = c.place;
  const { logits, terms } = logitsOf(data, model, head, token);
  const attention = softmax(logits);
  const shares = sharesOf(terms, logits);
  const rest = model.angles
    ? logits.map((x, key) => x - terms.reduce((sum, term) => sum + term[key], 0))
    : data.bias.subarray(head * logits.length, (head + 1) * logits.length);
  const bias = sharesOf([rest], logits)[0];
  const canvas = canvasOf(model, 400, `attention in layer ${layer}, head ${head}`);
  draw.lit(canvas, grid, photo, attention.subarray(special.length));
  const onSpecial = special.map((name, i) => `${percent(attention[i])} on the ${name}`).join(", ");
  const read = h(
    "output",
    { "aria-live": "polite", class: "read", id: c.id("attention") },
    onSpecial || "Point at a patch to read its attention.",
  );
  const box = pointable(canvas, grid, {
    id: c.id("attended"),
    label: `attention in layer ${layer}, head ${head}: arrow keys move over patches`,
    onpoint: (row, column) => {
      const key = special.length + row * grid[1] + column;
      box.mark(row, column);
      const times = number(attention[key] * attention.length, 2);
      read.textContent = `row ${row}, column ${column}: attention ${number(attention[key], 3)}, ${times} times uniform`;
    },
  });
  const order = shares
    .map((share, mode) => mode)
    .filter((mode) => Number.isFinite(shares[mode]))
    .sort((a, b) => shares[b] - shares[a])
    .slice(0, 8);
  const rows = order.map((mode) => {
    const small = canvasOf(model, 64, `what mode ${mode} adds, patch by patch`);
    const mean = terms[mode].reduce((a, b) => a + b) / terms[mode].length;
    draw.signed(
      small,
      grid,
      terms[mode].subarray(special.length).map((x) => x - mean),
    );
    const keys = model.angles ? canvasOf(model, 64, `keys of mode ${mode} from here`) : null;
    if (keys) draw.signed(keys, grid, keysFrom(data, model, head, mode, token).subarray(special.length));
    const name = `L${layer} H${head} M${mode}`;
    const cosine = model.cosine[(layer * model.facts.heads + head) * model.facts.modes + mode];
    return h(
      "tr",
      {},
      h("td", { class: "tile" }, small),
      keys ? h("td", { class: "tile" }, keys) : null,
      h(
        "th",
        { scope: "row" },
        mode < model.facts.shown ? h("a", { href: c.href({ view: "mode", mode, sign: 1, tile: 0 }) }, name) : name,
      ),
      h("td", {}, percent(shares[mode])),
      h("td", {}, number(cosine, 2)),
    );
  });
  return [
    h("h3", {}, `Layer ${layer}, head ${head}: attention of this patch`),
    h("div", { class: "photo" }, box),
    read,
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "group", "aria-label": "modes that make it so" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["adds", ...(model.angles ? ["keys from here"] : []), "mode", "share here", "cosine"].map((text) =>
              h("th", { scope: "col" }, text),
            ),
          ),
        ),
        h("tbody", {}, rows),
      ),
    ),
    h(
      "p",
      { class: "hint" },
      `The modes by which the logits of this query differ most between keys; `,
      model.angles
        ? `the biases and the planes that no mode includes have a share of ${percent(bias)}. `
        : `the key bias has a share of ${percent(bias)}. `,
      `Orange: draws attention there, purple: away. `,
      model.angles
        ? "Keys from here: the exact logits of a query with the mode's query direction at the chosen place. "
        : null,
      h("a", { href: c.href({ view: "head" }) }, "All modes of the head"),
    ),
  ];
}
