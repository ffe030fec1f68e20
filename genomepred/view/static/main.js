// The page: one map, its settings, and what follows from changing them.

import { heatMaps, openBrowser, showTracks, wholeContig } from "./browser.js";
import { DIVERGING, SEQUENTIAL } from "./colors.js";
import { fillBar, listen, listenToKeys, showSettings, tell } from "./controls.js";
import { byColumn, byValue, grouped } from "./layout.js";
import { drawLegend, keepLegends } from "./legend.js";
import { Columns, valuesOf } from "./picture.js";
import { binsWithin, levelFor, makePlaces } from "./places.js";
import { address, ask } from "./server.js";
import { readSession, readSettings, writeSession, writeSettings } from "./settings.js";
import { table } from "./table.js";
import { Tiles } from "./tiles.js";

const byId = (id) => document.getElementById(id);
const WAIT = 300; // milliseconds between looks at what is being prepared
const MOST_BINS = 256; // of an order by similarity
const LEAST_HEIGHT = 120;

class Page {
  constructor(maps, genes) {
    this.maps = maps;
    this.genes = genes;
    this.found = [];
    this.changes = Promise.resolve();
  }

  /** Show the map of the settings, once it is prepared. */
  async open(settings) {
    this.key = this.maps.some(({ key }) => key === settings.map) ? settings.map : this.maps[0].key;
    this.facts = await prepared(this.key);
    document.title = `${this.facts.title} · genomepred`;
    this.places = makePlaces(this.facts);
    this.tiles = new Tiles(this.key, this.facts);
    this.settings = this.valid({ ...settings, map: this.key });
    fillBar(this, this.maps);
    this.arrange(this.baseOrder());
    byId("wait").hidden = true;
    byId("bar").hidden = false;
    showSettings(this);
    byId("browser").replaceChildren();
    const element = document.createElement("div");
    byId("browser").append(element);
    this.browser = await openBrowser(this, element);
    await this.showTracks();
    this.browser.on("locuschange", () => this.moved());
    if (["cluster", "value"].includes(this.settings.sort)) await this.sort();
    this.find();
    this.moved();
    if (this.facts.note) tell(this.facts.note, true);
  }

  /** Settings of which each fits the map. */
  valid(settings) {
    const { facts } = this;
    const tracks = settings.tracks.filter((k) => k in facts.tracks);
    const names = Object.keys(facts.columns);
    const usual = settings.show === "difference" ? DIVERGING : SEQUENTIAL;
    const sorts = ["file", "name", "value", "cluster", ...names.map((name) => `column:${name}`)];
    const bases = ["mean", ...facts.lines.keys()].map(String);
    return {
      ...settings,
      tracks: tracks.length ? tracks : [0],
      palette: usual.includes(settings.palette) ? settings.palette : usual[0],
      group: names.includes(settings.group) ? settings.group : "",
      sort: sorts.includes(settings.sort) ? settings.sort : "file",
      base: bases.includes(settings.base) ? settings.base : String(facts.reference ?? "mean"),
    };
  }

  /** Change settings, and what follows from them. */
  set(changes) {
    this.changes = this.changes.then(() => this.apply(changes)).catch((error) => tell(error.message, true));
    return this.changes;
  }

  async apply(changes) {
    if (changes.map && changes.map !== this.key) {
      location.hash = writeSettings({ ...this.settings, ...changes, locus: "", base: "", sort: "file" });
      location.reload();
      return;
    }
    if (changes.show && changes.show !== this.settings.show) {
      changes = { low: undefined, high: undefined, ...changes };
    }
    this.settings = this.valid({ ...this.settings, ...changes });
    if ("sort" in changes || "group" in changes) await this.sort();
    if ("find" in changes) this.find();
    if ("tracks" in changes) await this.showTracks();
    else if ("statistic" in changes) await this.reload();
    else this.repaint();
    showSettings(this);
    this.remember();
  }

  /** Base of differences: a line's number, or "mean". */
  base() {
    const { base } = this.settings;
    return base === "mean" ? base : Number(base);
  }

  // -- rows ---------------------------------------------------------------------------------------

  baseOrder() {
    const { sort } = this.settings;
    const { lines, columns } = this.facts;
    if (sort === "name") return byColumn(lines);
    if (sort.startsWith("column:")) return byColumn(columns[sort.slice(7)]);
    return Uint32Array.from(lines.keys());
  }

  arrange(order) {
    const { group } = this.settings;
    this.rows = grouped(order, group ? this.facts.columns[group] : undefined);
    this.rows.places = new Uint32Array(this.rows.order.length);
    this.rows.order.forEach((line, place) => { this.rows.places[line] = place; });
  }

  async sort() {
    const { sort } = this.settings;
    if (sort === "cluster") this.arrange(await this.similar());
    else if (sort === "value") this.arrange(await this.valued(this.clicked ?? this.center()));
    else this.arrange(this.baseOrder());
    this.clicked = undefined;
    for (const track of heatMaps(this.browser)) track.trackView.checkContentHeight();
  }

  /** Order rows by their values at a place. */
  sortAt(place) {
    this.clicked = place;
    return this.set({ sort: "value" });
  }

  center() {
    const frame = this.browser.referenceFrameList[0];
    return { contig: frame.chr, base: Math.floor((frame.start + frame.end) / 2) };
  }

  async valued({ contig, base }) {
    const [track] = this.settings.tracks;
    const level = levelFor(this.facts, this.browser.referenceFrameList[0].bpPerPixel);
    const [piece] = binsWithin(this.facts, this.places.get(contig), base, base + 1, level);
    if (!piece) return this.baseOrder();
    const { columns, values } = await this.columns(track, [{ ...piece, last: piece.first + 1 }]);
    return byValue(Array.from(columns.codes, (code) => values[code]));
  }

  async similar() {
    const frame = this.browser.referenceFrameList[0];
    const [track] = this.settings.tracks;
    let level = levelFor(this.facts, frame.bpPerPixel);
    let piece;
    do {
      [piece] = binsWithin(this.facts, this.places.get(frame.chr), frame.start, frame.end, level++);
    } while (piece && piece.last - piece.first > MOST_BINS);
    if (!piece) return this.baseOrder();
    tell("putting similar rows side by side …");
    const order = await ask("order", {
      map: this.key, track, stat: this.statistic, level: piece.level, interval: piece.place.number,
      first: piece.first, last: piece.last,
    });
    tell("");
    return Uint32Array.from(order);
  }

  get statistic() {
    return this.settings.statistic === "max" ? 1 : 0;
  }

  /** Codes of bins of a track, and the values that they stand for. */
  async columns(track, pieces) {
    await Promise.all(pieces.map(async (piece) => {
      piece.tiles = await this.tiles.load(
        track, this.statistic, piece.level, piece.place.number, piece.first, piece.last);
    }));
    const columns = new Columns(pieces, this.facts).all();
    return { columns, values: valuesOf(this.facts.tracks[track]) };
  }

  find() {
    const text = this.settings.find.trim().toLowerCase();
    const lines = [...this.facts.lines.keys()];
    this.found = text ? lines.filter((k) => this.facts.lines[k].toLowerCase().includes(text)) : [];
    byId("found").textContent = text ? `${this.found.length} found` : "";
    if (!this.found.length) return;
    for (const track of heatMaps(this.browser)) track.reveal(this.found[0]);
  }

  // -- the picture --------------------------------------------------------------------------------

  async showTracks() {
    const { tracks } = this.settings;
    keepLegends(byId("legends"), tracks.map((k) => this.facts.tracks[k].name));
    this.room = this.height();
    await showTracks(this, this.browser, tracks, this.room);
  }

  /** Let pictures fill their room soon, if that of the window or of the controls has changed. */
  fit() {
    clearTimeout(this.fitting);
    this.fitting = setTimeout(() => {
      if (this.height() !== this.room) this.set({ tracks: this.settings.tracks });
    }, 200);
  }

  /** Pixels that a heat map may have. */
  height() {
    const above = byId("browser").getBoundingClientRect().top + window.scrollY;
    const others = this.browser.trackViews
      .filter(({ track }) => track.type !== "heatmap")
      .reduce((sum, { track }) => sum + track.height + 5, 0);
    const room = window.innerHeight - above - others - 80;
    const count = this.settings.tracks.length;
    return Math.max(Math.floor(room / count) - 6, LEAST_HEIGHT);
  }

  repaint() {
    for (const track of heatMaps(this.browser)) {
      track.trackView.checkContentHeight();
      track.trackView.repaintViews();
    }
  }

  async reload() {
    for (const track of heatMaps(this.browser)) await track.trackView.updateViews();
  }

  drawn(track, style) {
    const { name } = this.facts.tracks[track.number];
    drawLegend(byId("legends"), name, style.low, style.high, this.settings.palette);
    this.fit();
  }

  tell(text, wrong) {
    tell(text, wrong);
  }

  moved() {
    this.settings.locus = this.browser.currentLoci();
    this.remember();
  }

  remember() {
    history.replaceState(null, "", location.pathname + writeSettings(this.settings));
  }

  // -- keys and buttons ---------------------------------------------------------------------------

  act(name) {
    const frame = this.browser.referenceFrameList[0];
    const acts = {
      left: () => this.pan(-0.5),
      right: () => this.pan(0.5),
      up: () => this.scroll(-1),
      down: () => this.scroll(1),
      in: () => this.browser.zoomIn(),
      out: () => this.browser.zoomOut(),
      home: () => this.browser.search(wholeContig(this.facts, frame.chr)),
      place: () => this.browser.navbar.searchInput.select(),
      find: () => byId("find").select(),
      value: () => this.set({ show: "value" }),
      difference: () => this.set({ show: "difference" }),
      statistic: () => this.set({ statistic: this.settings.statistic === "max" ? "mean" : "max" }),
      cluster: () => this.set({ sort: "cluster" }),
      sort: () => this.set({ sort: "value" }),
      help: () => byId("keys").showModal(),
      link: () => this.copyLink(),
      png: () => this.browser.savePNGtoFile(`${this.fileName()}.png`),
      svg: () => this.browser.saveSVGtoFile(`${this.fileName()}.svg`),
      tsv: () => this.saveTable(),
      save: () => {
        this.remember();
        download(`${this.fileName()}.json`, writeSession(this.facts.title, this.settings), "application/json");
      },
      session: () => this.openSession(byId("session")),
    };
    return acts[name]();
  }

  async pan(screens) {
    const [frame] = this.browser.referenceFrameList;
    const width = this.browser.calculateViewportWidth(this.browser.referenceFrameList.length);
    frame.shiftPixels(screens * width, width, true);
    await this.browser.updateViews();
    this.browser.fireEvent("locuschange", [this.browser.referenceFrameList]);
  }

  scroll(sign) {
    for (const { height, trackView } of heatMaps(this.browser)) {
      trackView.scrollByPixels(sign * Math.floor(height / 2));
    }
  }

  async copyLink() {
    this.remember();
    try {
      await navigator.clipboard.writeText(location.href);
      tell("the address of this view is copied; it works in this browser while the server runs");
    } catch {
      tell(location.href);
    }
  }

  fileName() {
    return `${this.facts.title} ${this.browser.currentLoci()}`.replace(/[^\w.-]+/g, "_");
  }

  async saveTable() {
    const frame = this.browser.referenceFrameList[0];
    const level = levelFor(this.facts, frame.bpPerPixel);
    const parts = [];
    for (const track of this.settings.tracks) {
      const pieces = binsWithin(this.facts, this.places.get(frame.chr), frame.start, frame.end, level);
      parts.push({ track, ...await this.columns(track, pieces) });
    }
    download(`${this.fileName()}.tsv`, table(this, frame.chr, parts), "text/tab-separated-values");
  }

  /** Show the view of a session that has been chosen. */
  async openSession(input) {
    const [file] = input.files;
    if (!file) return;
    try {
      const { title, settings } = readSession(await file.text());
      const map = this.maps.find((known) => known.title === title);
      if (!map) throw new Error(`a session of ${title}, which is not shown here`);
      location.hash = writeSettings({ ...settings, map: map.key });
      location.reload();
    } catch (error) {
      tell(`${file.name}: ${error.message}`, true);
    } finally {
      input.value = "";
    }
  }
}

/** Have the browser save a text. */
function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Facts of a map, once it is prepared; meanwhile how far that is. */
async function prepared(map) {
  for (;;) {
    const { share, error, facts } = await ask("map", { map });
    if (error) throw new Error(error);
    if (facts) return facts;
    byId("wait").firstElementChild.textContent = "Preparing the map; this is done once for a file …";
    byId("wait").lastElementChild.value = share;
    await new Promise((resume) => { setTimeout(resume, WAIT); });
  }
}

async function begin() {
  const { maps, genes } = await ask("maps");
  const page = new Page(maps, genes);
  window.genomepred = page;
  await page.open(readSettings(location.hash));
  listen((changes) => page.set(changes), (name) => page.act(name));
  listenToKeys((name) => page.act(name));
  window.addEventListener("resize", () => page.fit());
  new ResizeObserver(() => page.fit()).observe(byId("bar"));
  page.ready = true;
}

begin().catch((error) => {
  byId("wait").firstElementChild.textContent = error.message;
  byId("wait").lastElementChild.hidden = true;
  tell(error.message, true);
});
