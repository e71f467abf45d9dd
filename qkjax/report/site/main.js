// The panes, one or two, the address, the keys.

const SHOWN = { overview: overviewView, head: headView, mode: modeView, look: lookView, results: resultsView };
const TABS = { overview: "Overview", head: "Head", mode: "Mode", look: "Image", results: "Results" };

async function start(count) {
  try {
    const models = await Promise.all([...Array(count).keys()].map((i) => load(`m${i}/model`)));
    models.forEach((model, i) => (model.key = `m${i}`));
    document.title = `${models.map((model) => model.facts.name).join(", ")}: qkjax report`;
    const app = new App(models);
    window.addEventListener("hashchange", () => app.render());
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
  }

  get places() {
    return placesFrom(this.models, location.hash);
  }

  address(pane, change) {
    return addressOf(this.models, this.places.map((place, i) => (i === pane ? placeOf(this.models, { ...place, ...change }) : place)));
  }

  show(places, replace = false) {
    const address = addressOf(this.models, places);
    if (replace) location.replace(address);
    else location.hash = address;
  }

  go(pane, change, replace) {
    const moves = (i) => i === pane || this.together;
    this.show(this.places.map((place, i) => (moves(i) ? placeOf(this.models, { ...place, ...(i === pane ? change : without(change, "model")) }) : place)), replace);
  }

  async render() {
    const main = document.getElementById("panes");
    const places = this.places;
    this.active = Math.min(this.active, places.length - 1);
    main.className = places.length > 1 ? "two" : "";
    while (main.children.length > places.length) main.lastChild.remove();
    while (main.children.length < places.length) {
      const pane = main.children.length;
      main.append(h("section", { class: "pane", "aria-label": pane ? "second pane" : "first pane", onpointerdown: () => this.activate(pane), onfocusin: () => this.activate(pane) }));
    }
    this.activate(this.active);
    document.getElementById("both").replaceChildren(...this.controls(places));
    await Promise.all(places.map((place, i) => this.fill(main.children[i], i, place, places)));
  }

  activate(pane) {
    this.active = pane;
    [...document.getElementById("panes").children].forEach((element, i, all) => element.classList.toggle("active", all.length > 1 && i === pane));
  }

  async fill(element, pane, place, places) {
    const model = this.models[place.model];
    const width = Math.floor(element.clientWidth - 24);
    const other = places.length > 1 && places[1 - pane].model !== place.model ? this.models[places[1 - pane].model] : null;
    const c = {
      models: this.models,
      place,
      other,
      half: width > 760 ? Math.floor(width / 2) - 16 : width,
      id: (name) => `p${pane}-${name}`,
      label: (text) => (pane ? `${text}, second pane` : text),
      href: (change) => this.address(pane, { tile: 0, ...change }),
      go: (change, replace) => this.go(pane, change, replace),
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
    element.replaceChildren(this.tabs(c, pane, place), ...content);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    if (moved && places.length === 1 && turn > 1) window.scrollTo(0, 0);
  }

  tabs(c, pane, place) {
    const choose = h("select", { id: c.id("model"), "aria-label": "model", onchange: (event) => this.show(this.places.map((x, i) => (i === pane ? placeOf(this.models, { ...x, model: Number(event.target.value) }) : x))) }, this.models.map((model, i) => h("option", { value: i, selected: i === place.model }, model.facts.name)));
    const tab = (view) => h("a", { href: c.href({ view }), id: c.id(`tab-${view}`), "aria-current": view === place.view ? "page" : null }, TABS[view]);
    return h("nav", { class: "tabs", "aria-label": c.label("views") }, this.models.length > 1 ? choose : null, Object.keys(TABS).map(tab));
  }

  controls(places) {
    const split = () => this.show(places.length > 1 ? [places[this.active]] : [places[0], { ...places[0], model: Math.min(1, this.models.length - 1 - places[0].model) || 0 }].map((place) => placeOf(this.models, place)));
    const button = h("button", { type: "button", id: "split", "aria-pressed": String(places.length > 1), onclick: split }, places.length > 1 ? "One view" : "Side by side");
    if (places.length < 2) return [button];
    const box = h("input", { type: "checkbox", id: "together", onchange: (event) => (this.together = event.target.checked) });
    box.checked = this.together;
    return [h("label", {}, box, " move both"), button];
  }

  pressed(event) {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.target.closest?.("select, input, pre, .scroll")) return;
    const place = this.places[this.active];
    const on = place.view === "mode" ? (event.shiftKey ? { ArrowUp: ["layer", -1], ArrowDown: ["layer", 1] } : { ArrowLeft: ["mode", -1], ArrowRight: ["mode", 1], ArrowUp: ["head", -1], ArrowDown: ["head", 1] }) : place.view === "head" ? { ArrowLeft: ["head", -1], ArrowRight: ["head", 1], ArrowUp: ["layer", -1], ArrowDown: ["layer", 1] } : {};
    const step = on[event.key];
    if (step) {
      event.preventDefault();
      this.go(this.active, { [step[0]]: place[step[0]] + step[1], tile: 0 }, true);
    } else if (place.view === "mode" && event.key === "s") {
      this.go(this.active, { sign: -place.sign, tile: 0 }, true);
    }
  }
}

function without(object, name) {
  const { [name]: _, ...rest } = object;
  return rest;
}
