// Sorting and filtering of the tables, and the plots of the boards. Nothing is loaded: the data are in the page.
"use strict";

// ------------------------------------------------------------------------------------------------------------ sorting

const ERRORS = 1; // what Vega says in the console: errors alone
const MISSING = "–";
const ORDERS = ["none", "ascending", "descending"];

const SCALES = { K: 1e3, M: 1e6, G: 1e9, B: 1e9 };

/** The number with which a cell begins, in brackets or not, "1.8M" as millions; NaN where it begins with none. */
function number(text) {
  const found = text.replaceAll(",", "").match(/^\(?([-+]?\d[\d.]*(?:e[-+]?\d+)?)([KMGB](?![A-Za-z]))?/);
  return found ? parseFloat(found[1]) * (SCALES[found[2]] ?? 1) : NaN;
}

/** Numbers first, by size; then texts; cells in which nothing stands are last in either direction. */
function compare(one, other, sign) {
  if (one === MISSING || other === MISSING) return (one === MISSING) - (other === MISSING);
  const [a, b] = [number(one), number(other)];
  if (Number.isNaN(a) || Number.isNaN(b)) {
    return Number.isNaN(a) - Number.isNaN(b) || sign * one.localeCompare(other, "en");
  }
  return sign * (a - b);
}

/** Buttons in the heads of a table: a click orders it up, down, and as it was. */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = ORDERS[(ORDERS.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
      const text = (row) => (row.cells[column]?.innerText ?? "").trim();
      const sign = order === "descending" ? -1 : 1;
      const keyed = original.map((row) => [text(row) || MISSING, row]);
      if (order !== "none") keyed.sort(([one], [other]) => compare(one, other, sign));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

// -------------------------------------------------------------------------------------------------------------- plots

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const quantitative = (field, more) => ({ field, type: "quantitative", ...more });

/** The Vega-Lite form of one plane: dense net and Pareto front as lines, the rows as points with bars over the seeds. */
function spec(plot, plane, looks) {
  const families = Object.keys(looks);
  const style = (key) => ({ domain: families, range: families.map((family) => looks[family][key]) });
  const x = quantitative("x", { title: null, scale: plane.log ? { type: "log", nice: false, padding: 10 } : { zero: false, nice: false, padding: 10 } });
  x.axis = { format: "~s", tickCount: 5, labelOverlap: true, grid: false };
  const y = (field) => quantitative(field, { title: plot.measure, scale: { zero: false } });
  const hue = { field: "family", type: "nominal", scale: style("colour"), legend: null };
  const lit = { param: "lit", test: "datum.row === lit" };
  const tooltip = [
    { field: "method", title: "method" },
    { field: "setting", title: "setting" },
    { field: "n", title: "n" },
    { field: "accuracy", title: plot.measure },
    quantitative("x", { title: plane.title, format: ",.4~g" }),
    ...(plane.key.startsWith("latency") ? [{ field: `${plane.key}_remark`, title: "remark" }] : []),
  ];
  return {
    width: "container",
    height: "container",
    autosize: { type: "fit", contains: "padding" },
    background: "transparent",
    params: [{ name: "lit", value: -1 }],
    layer: [
      {
        data: { name: "dense" },
        mark: { type: "rule", strokeDash: [5, 4], color: colour("soft"), tooltip: null },
        encoding: { y: y("y") },
      },
      {
        data: { name: "front" },
        mark: { type: "line", interpolate: "step-after", color: colour("soft"), strokeWidth: 1 },
        encoding: { x, y: y("y") },
      },
      { data: { name: "points" }, mark: { type: "rule", strokeWidth: 1.5 }, encoding: { x, y: y("low"), y2: { field: "high" }, color: hue } },
      {
        data: { name: "points" },
        mark: { type: "point", filled: true, cursor: "pointer", opacity: 1 },
        encoding: {
          x,
          y: y("y"),
          color: hue,
          shape: { field: "family", type: "nominal", scale: style("shape"), legend: null },
          size: { condition: { test: lit.test, value: 260 }, value: 75 },
          stroke: { condition: { test: "datum.front || datum.dense", value: colour("text") }, value: "transparent" },
          strokeWidth: { condition: { test: "datum.dense", value: 3 }, value: 1.4 },
          href: { field: "href" },
          tooltip,
        },
      },
    ],
    config: {
      view: { stroke: null },
      axis: {
        labelColor: colour("soft"), titleColor: colour("soft"), gridColor: colour("line"), domainColor: colour("line"),
        tickColor: colour("line"), titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11,
      },
      font: "system-ui, sans-serif",
    },
  };
}

/** One board: its table's rows, its planes and, once drawn, their views. */
class Board {
  constructor(plot, looks) {
    this.plot = plot;
    this.looks = looks;
    this.section = document.getElementById(plot.slug);
    this.rows = new Map([...this.section.querySelectorAll("tbody tr")].map((tr) => [Number(tr.dataset.row), tr]));
    this.views = new Map();
    for (const [row, tr] of this.rows) {
      tr.addEventListener("mouseenter", () => this.light(row));
      tr.addEventListener("mouseleave", () => this.light(-1));
    }
  }

  /** Show the rows that ``wanted`` takes, in the table and in every plane; ``least``: where the lines begin. */
  async filter(wanted, least) {
    let seen = 0;
    for (const tr of this.rows.values()) {
      tr.hidden = !wanted(tr);
      seen += !tr.hidden;
    }
    this.least = least;
    const all = this.rows.size;
    this.section.querySelector(".count").textContent = `Rows: ${seen === all ? all : `${seen} of ${all}`}`;
    if (!this.section.hidden) await this.draw();
  }

  /** What a plane shows now. */
  values(plane) {
    const front = new Set(plane.front);
    const from = (values) => values.filter((value) => !(value.y < this.least));
    const points = this.plot.points.map((point) => ({ ...point, x: point[plane.key], front: front.has(point.row) }));
    const order = new Map(plane.front.map((row, place) => [row, place]));
    const steps = points.filter((point) => point.front).sort((a, b) => order.get(a.row) - order.get(b.row));
    const rows = points.filter((point) => !this.rows.get(point.row).hidden);
    return {
      points: rows.filter((point) => point.x !== null),
      front: from(steps),
      dense: from(this.plot.dense === null ? [] : [{ y: this.plot.dense }]),
      missing: rows.filter((point) => point.x === null).length,
    };
  }

  async draw() {
    for (const plane of this.plot.planes) {
      const figure = this.section.querySelector(`[data-plane="${plane.key}"]`);
      const { missing, ...values } = this.values(plane);
      const rest = missing ? `Rows without a point: ${missing} (not measured, or nothing is claimed).` : "";
      figure.querySelector(".missing").textContent = rest;
      const place = figure.querySelector(".plot");
      place.classList.toggle("empty", values.points.length === 0);
      if (!this.views.has(plane.key)) this.views.set(plane.key, this.embed(plane, place, values));
      const view = await this.views.get(plane.key);
      for (const [name, found] of Object.entries(values)) view.data(name, found);
      await view.runAsync();
    }
  }

  async embed(plane, place, datasets) {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const drawn = { ...spec(this.plot, plane, this.looks), datasets };
    const options = { actions: false, ast: true, renderer: "svg", logLevel: ERRORS };
    options.tooltip = { theme: dark ? "dark" : "light" };
    const { view } = await vegaEmbed(place, drawn, options);
    view.addEventListener("mouseover", (_, item) => this.light(item?.datum?.row ?? -1));
    view.addEventListener("mouseout", () => this.light(-1));
    return view;
  }

  /** Make a row stand out in the table and in every plane (-1: none). */
  async light(row) {
    for (const [place, tr] of this.rows) tr.classList.toggle("lit", place === row);
    for (const view of await Promise.all(this.views.values())) view.signal("lit", row).runAsync();
  }

  /** Draw again, in the colours of now. */
  async again() {
    for (const view of await Promise.all(this.views.values())) view.finalize();
    this.views.clear();
    if (!this.section.hidden) await this.draw();
  }
}

// ------------------------------------------------------------------------------------------------------------ filters

function filters(form, boards) {
  const fields = form.elements;
  const apply = () => {
    const words = fields.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const least = fields.least.value === "" ? -Infinity : Number(fields.least.value);
    const wanted = ({ dataset, textContent }) =>
      (!fields.family.value || dataset.family === fields.family.value) &&
      (!fields.start.value || dataset.start === fields.start.value) &&
      (least === -Infinity || (dataset.accuracy !== "" && Number(dataset.accuracy) >= least)) &&
      words.every((word) => textContent.toLowerCase().includes(word));
    return Promise.all(
      boards.map((board) => {
        board.section.hidden = Boolean(fields.board.value) && fields.board.value !== board.plot.slug;
        return board.filter(wanted, least);
      }),
    );
  };
  const go = () => {
    const slug = decodeURIComponent(location.hash.slice(1));
    if (boards.some((board) => board.plot.slug === slug)) fields.board.value = slug;
    return apply();
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  addEventListener("hashchange", go);
  return go();
}

/** The filters of a page of tables: one table or all, and the rows that hold every word. */
function find(form) {
  const fields = form.elements;
  const sheets = [...document.querySelectorAll(".sheet")];
  const all = document.querySelectorAll(".sheet tbody tr").length;
  const apply = () => {
    const words = fields.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    for (const sheet of sheets) {
      const rows = [...sheet.querySelectorAll("tbody tr")];
      const chosen = !fields.table.value || fields.table.value === sheet.id;
      for (const row of rows) row.hidden = !chosen || !words.every((word) => row.textContent.toLowerCase().includes(word));
      const shown = rows.filter((row) => !row.hidden).length;
      sheet.hidden = shown === 0;
      seen += shown;
    }
    document.querySelector(".count").textContent = `Rows: ${seen === all ? all : `${seen} of ${all}`}`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
}

async function start() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("form.find").forEach(find);
  const data = document.getElementById("data");
  if (!data) return;
  const { boards: plots, looks } = JSON.parse(data.textContent);
  const boards = plots.map((plot) => new Board(plot, looks));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => boards.forEach((board) => board.again()));
  await filters(document.querySelector(".filters"), boards);
}

document.documentElement.dataset.ready = "";
start().then(() => { document.documentElement.dataset.ready = "yes"; });
