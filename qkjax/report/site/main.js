// The panes, one or two, the address, the keys.

const SHOWN = { overview: overviewView, head: headView, mode: modeView, look: lookView, results: resultsView };
const TABS = { overview: "Overview", head: "Head", mode: "Mode", look: "Image", results: "Results" };

// Up and down by themselves scroll, as everywhere.
const LAYERS = { "shift ArrowUp": ["layer", -1], "shift ArrowDown": ["layer", 1] };
const KEYS = {
  head: { ArrowLeft: ["head", -1], ArrowRight: ["head", 1], ...LAYERS },
  mode: {
    ...{ ArrowLeft: ["mode", -1], ArrowRight: ["mode", 1] },
    ...{ "shift ArrowLeft": ["head", -1], "shift ArrowRight": ["head", 1], ...LAYERS },
  },
};

/** The address of what is shown: the browser's, or the page's own where it is in a notebook cell. */
const address = {
  get hash() {
    return qkjax.inside ? qkjax.inside.hash : location.hash;
  },
  go(hash, replace, app) {
    if (qkjax.inside) {
      qkjax.inside.hash = hash;
      app.render();
    } else if (replace) location.replace(hash);
    else location.hash = hash;
  },
};

/** In a notebook cell a link would lead to the notebook. */
function followInside(event, app) {
  const link = event.target.closest?.('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  address.go(link.getAttribute("href"), false, app);
}

async function start(count) {
  try {
    const models = await Promise.all([...Array(count).keys()].map((i) => load(`m${i}/model`)));
    models.forEach((model, i) => (model.key = `m${i}`));
    document.title = `${models.map((model) => model.facts.name).join(", ")}: qkjax report`;
    const app = new App(models);
    window.addEventListener("hashchange", () => app.render());
    if (qkjax.inside) document.addEventListener("click", (event) => followInside(event, app));
    window.addEventListener("keydown", (event) => app.pressed(event));
    let width = window.innerWidth;
    let waiting;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return; // a phone's bars come and go
      width = window.innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(() => app.render(), 150);
    });
    await app.render();
  } catch (error) {
    document.getElementById("panes").replaceChildren(h("p", { role: "alert" }, error.message));
  }
}

class App {
  constructor(models) {
    this.models = models;
    this.active = 0;
    this.together = false;
    this.kept = []; // the places last shown: an overview's address has no layer, and coming back one wants it
  }

  get places() {
    return placesFrom(this.models, address.hash, this.kept);
  }

  /** The places after a change of one pane; of the other, too, if both move: it goes to the same. */
  changed(pane, change) {
    const places = this.places;
    const facts = (i) => this.models[places[i].model].facts;
    return places.map((place, i) => {
      if (i === pane) return placeOf(this.models, { ...place, ...change });
      if (!this.together) return place;
      const token = "token" in change ? { token: tokenAcross(facts(pane), facts(i), change.token) } : {};
      return placeOf(this.models, { ...place, ...change, ...token, model: place.model });
    });
  }

  show(places, replace = false) {
    address.go(addressOf(this.models, places), replace, this);
  }

  /** A step to the next mode, head or layer; if both panes move, each from where it is. */
  step(pane, kind, by, replace) {
    const moves = (i) => i === pane || this.together;
    const stepped = (place) => placeOf(this.models, { ...place, [kind]: place[kind] + by, tile: 0 });
    this.show(
      this.places.map((place, i) => (moves(i) ? stepped(place) : place)),
      replace,
    );
  }

  async render() {
    const main = document.getElementById("panes");
    const places = (this.kept = this.places);
    this.active = Math.min(this.active, places.length - 1);
    main.className = places.length > 1 ? "two" : "";
    while (main.children.length > places.length) main.lastChild.remove();
    while (main.children.length < places.length) {
      const pane = main.children.length;
      main.append(
        h("section", {
          class: "pane",
          "aria-label": pane ? "second pane" : "first pane",
          onpointerdown: () => this.activate(pane),
          onfocusin: () => this.activate(pane),
        }),
      );
    }
    this.activate(this.active);
    document.getElementById("both").replaceChildren(...this.controls(places));
    await Promise.all(places.map((place, i) => this.fill(main.children[i], i, place, places)));
  }

  activate(pane) {
    this.active = pane;
    [...document.getElementById("panes").children].forEach((element, i, all) =>
      element.classList.toggle("active", all.length > 1 && i === pane),
    );
  }

  async fill(element, pane, place, places) {
    const model = this.models[place.model];
    const width = Math.floor(element.clientWidth - 24);
    const other =
      places.length > 1 && places[1 - pane].model !== place.model ? this.models[places[1 - pane].model] : null;
    const c = {
      models: this.models,
      place,
      other,
      half: width > 760 ? Math.floor(width / 2) - 16 : width,
      id: (name) => `p${pane}-${name}`,
      label: (text) => (pane ? `${text}, second pane` : text),
      href: (change) => addressOf(this.models, this.changed(pane, change)),
      go: (change, replace) => this.show(this.changed(pane, change), replace),
      step: (kind, by) => this.step(pane, kind, by),
    };
    const turn = (element.turn = (element.turn || 0) + 1);
    let content;
    try {
      content = await SHOWN[place.view](c, model);
    } catch (error) {
      content = [h("p", { role: "alert" }, error.message)];
    }
    if (turn !== element.turn) return; // one has gone on meanwhile
    const focused = element.contains(document.activeElement) ? document.activeElement.id : null;
    const moved = element.dataset.view !== place.view;
    element.dataset.view = place.view;
    element.replaceChildren(this.tabs(c, pane, place), ...content.filter((part) => part !== null));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    if (moved && places.length === 1 && turn > 1) window.scrollTo(0, 0);
  }

  tabs(c, pane, place) {
    const choose = h(
      "select",
      {
        id: c.id("model"),
        "aria-label": "model",
        onchange: (event) => c.go({ model: Number(event.target.value) }),
      },
      this.models.map((model, i) => h("option", { value: i, selected: i === place.model }, model.facts.name)),
    );
    const tab = (view) =>
      h(
        "a",
        { href: c.href({ view }), id: c.id(`tab-${view}`), "aria-current": view === place.view ? "page" : null },
        TABS[view],
      );
    return h(
      "nav",
      { class: "tabs", "aria-label": c.label("views") },
      this.models.length > 1 ? choose : null,
      Object.keys(TABS).map(tab),
    );
  }

  controls(places) {
    const split = places.length > 1;
    const next = { ...places[0], model: (places[0].model + 1) % this.models.length };
    const turn = () => this.show(split ? [places[this.active]] : [places[0], placeOf(this.models, next)]);
    const button = h(
      "button",
      { type: "button", id: "split", "aria-pressed": String(split), onclick: turn },
      split ? "One view" : "Side by side",
    );
    if (!split) return [button];
    const onchange = (event) => {
      this.together = event.target.checked;
      this.render(); // links lead elsewhere now
    };
    const box = h("input", { type: "checkbox", id: "together", onchange });
    box.checked = this.together;
    return [h("label", {}, box, " move both"), button];
  }

  pressed(event) {
    const elsewhere = event.target.closest?.("select, input, pre, .scroll");
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || elsewhere) return;
    const { view } = this.places[this.active];
    const [kind, by] = KEYS[view]?.[(event.shiftKey ? "shift " : "") + event.key] ?? [];
    if (!kind) return;
    event.preventDefault();
    this.step(this.active, kind, by, true);
  }
}
