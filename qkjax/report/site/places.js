// Where one is, and how the address says it: "model/L8H4M2+/3", two of them with "&" between side by side.

const VIEWS = ["overview", "head", "mode", "look", "results"];
const clamp = (x, count) => Math.min(Math.max(x, 0), count - 1);
const modeName = (p) => `L${p.layer} H${p.head} M${p.mode}${p.sign === undefined ? "" : p.sign > 0 ? "+" : "-"}`;

/** A place of a model with all that is left open filled in, and all indices of things that there are. */
function placeOf(models, place) {
  const model = models[place.model] ? place.model : 0;
  const { layers, heads, shown, places, look, grid, special } = models[model].facts;
  const view = VIEWS.includes(place.view) ? place.view : "overview";
  return {
    model,
    view,
    layer: clamp(place.layer ?? layers >> 1, layers),
    head: clamp(place.head ?? 0, heads),
    mode: clamp(place.mode ?? 0, shown),
    sign: place.sign === -1 ? -1 : 1,
    tile: clamp(place.tile ?? 0, places),
    image: clamp(place.image ?? 0, look.length),
    token: clamp(
      place.token ?? special.length + (grid[0] >> 1) * grid[1] + (grid[1] >> 1),
      special.length + grid[0] * grid[1],
    ),
  };
}

function textOf(models, p) {
  const name = encodeURIComponent(models[p.model].facts.name);
  const at = `L${p.layer}H${p.head}`;
  if (p.view === "head") return `${name}/${at}`;
  if (p.view === "mode") return `${name}/${at}M${p.mode}${p.sign > 0 ? "+" : "-"}${p.tile ? `/${p.tile}` : ""}`;
  if (p.view === "look") return `${name}/image${p.image}/token${p.token}/${at}`;
  return p.view === "results" ? `${name}/results` : name;
}

/** What an address says of a place, and nothing that it leaves open. */
function partsOf(models, text) {
  const [name, ...rest] = text.split("/");
  let plain;
  try {
    plain = decodeURIComponent(name);
  } catch {
    plain = name;
  }
  const named = models.findIndex((model) => model.facts.name === plain);
  const place = { model: Math.max(0, named), view: "overview" };
  const whole = rest.join("/");
  const mode = /^L(\d+)\s*H(\d+)(?:\s*M(\d+)([+-]?)(?:\/(\d+))?)?$/i.exec(whole);
  const look = /^image(\d+)(?:\/token(\d+))?(?:\/L(\d+)H(\d+))?$/.exec(whole);
  const of = (value) => (value === undefined ? undefined : Number(value));
  if (mode) {
    Object.assign(place, {
      view: mode[3] === undefined ? "head" : "mode",
      layer: of(mode[1]),
      head: of(mode[2]),
      mode: of(mode[3]),
      sign: mode[3] === undefined ? undefined : mode[4] === "-" ? -1 : 1,
      tile: of(mode[5]) ?? 0,
    });
  } else if (look) {
    Object.assign(place, {
      view: "look",
      image: of(look[1]),
      token: of(look[2]),
      layer: of(look[3]),
      head: of(look[4]),
    });
  } else if (whole === "results") place.view = "results";
  return Object.fromEntries(Object.entries(place).filter(([, value]) => value !== undefined));
}

const addressOf = (models, places) => "#" + places.map((place) => textOf(models, place)).join("&");

/** The places that an address says; what it leaves open is as it was in the pane. */
function placesFrom(models, address, before) {
  const texts = address.replace(/^#/, "").split("&").slice(0, 2);
  return texts.map((text, pane) => placeOf(models, { ...before[pane], ...partsOf(models, text) }));
}

/** The patch, or the special token, of one model that is where a token of another one is. */
function tokenAcross({ special, grid }, other, token) {
  if (token < special.length) return Math.max(0, other.special.indexOf(special[token]));
  const patch = token - special.length;
  const row = Math.floor(((Math.floor(patch / grid[1]) + 0.5) / grid[0]) * other.grid[0]);
  const column = Math.floor((((patch % grid[1]) + 0.5) / grid[1]) * other.grid[1]);
  return other.special.length + row * other.grid[1] + column;
}
