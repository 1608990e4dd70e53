// Page of a picture: draws the data of #data. All lengths of paths are quarters of a cell of the embedding's grid.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const scene = byId("scene"), strip = byId("strip"), panel = byId("panel"), tip = byId("tip"), dialog = byId("source");
const [width, height] = data.size;
const classes = data.classes.map(([name, color]) => ({ name, color }));
const orders = {
  area: data.segments.map((_, k) => k), // as they come
  certainty: data.segments.map((_, k) => k).sort((a, b) => data.segments[a].certainty - data.segments[b].certainty || a - b),
};
let order = orders.area;
let selected = -1;

// An element with attributes and children. Strings become text, never markup.
function element(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "image", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function percent(share) {
  const rounded = Math.round(100 * share);
  return `${share > 0 && share < 1 ? Math.min(Math.max(rounded, 1), 99) : rounded}%`;
}

const chip = (k) => element("span", { class: "class", "--color": classes[k].color }, element("span", { class: "swatch" }), classes[k].name);
const whole = (file, [w, h], more = {}) => element("image", { href: file, width: w, height: h, preserveAspectRatio: "none", ...more });
const rectangle = (w, h) => `M0 0h${w}v${h}h${-w}z`;
const wrong = (segment) => segment.truth !== null && segment.truth !== segment.label;
const votesFor = (segment) => `${segment.votes[0][0]} of ${segment.neighbors.length} votes`;

// A path that stands out: the rest darkened, and a line with a dark casing.
function spotlight(path, [w, h]) {
  return [
    element("path", { class: "veil", d: rectangle(w, h) + path }),
    element("path", { class: "casing", d: path }),
    element("path", { class: "mark", d: path }),
  ];
}

// The part of a picture around a box, 4 : 3, with a margin, within the picture where it fits.
function crop([left, top, w, h], [width, height]) {
  const tall = Math.min(Math.max(1.35 * h, (1.35 * w * 3) / 4, height / 5), Math.max(height, (width * 3) / 4));
  const wide = (tall * 4) / 3;
  const place = (start, length, size, limit) =>
    size >= limit ? (limit - size) / 2 : Math.min(Math.max(start + (length - size) / 2, 0), limit - size);
  return [place(left, w, wide, width), place(top, h, tall, height), wide, tall].map((x) => x.toFixed(1)).join(" ");
}

// ---- the picture

const marks = element("g");
const shapes = data.segments.map((segment, k) =>
  element(
    "g",
    {
      class: "segment", tabindex: "-1", role: "button", "--color": classes[segment.label].color, "data-segment": k,
      "aria-label": `Segment ${k + 1}: ${classes[segment.label].name}`,
      onclick: () => select(k), onmouseenter: () => point(k), onmouseleave: () => point(-1),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(k); } },
    },
    element("path", { class: "fill", d: segment.path, "fill-rule": "evenodd" }),
    element("path", { class: "edge", d: segment.path }),
  ),
);

const chips = data.segments.map((segment, k) =>
  element(
    "button",
    { type: "button", class: wrong(segment) ? "bad" : "", "data-segment": k,
      title: wrong(segment) ? `labels say ${classes[segment.truth].name}` : null,
      onclick: () => select(k), onmouseenter: () => point(k), onmouseleave: () => point(-1) },
    String(k + 1), chip(segment.label),
  ),
);

function point(k) {
  shapes.forEach((shape, other) => shape.classList.toggle("lit", other === k));
  tip.hidden = k < 0;
  if (k < 0) return;
  const segment = data.segments[k], box = scene.getBoundingClientRect(), frame = tip.parentElement.getBoundingClientRect();
  tip.textContent = `${classes[segment.label].name} \u00b7 ${votesFor(segment)}`;
  const half = tip.offsetWidth / 2, x = box.left - frame.left + (segment.anchor[0] / width) * box.width;
  tip.style.left = `${Math.min(Math.max(x, half), frame.width - half)}px`;
  tip.style.top = `${Math.max(box.top - frame.top + (segment.anchor[1] / height) * box.height, 1.6 * tip.offsetHeight)}px`;
}

function view(name) {
  scene.setAttribute("class", `view-${name}`);
  document.querySelectorAll("[data-view]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.view === name));
}

// ---- the selected segment

function verdict(segment) {
  if (segment.truth === null) return element("span", { class: "verdict" }, "no labels here");
  const share = `right for ${percent(segment.right)} of its labeled pixels`;
  return wrong(segment)
    ? element("span", { class: "verdict wrong" }, `wrong: most labels are ${classes[segment.truth].name}, ${share}`)
    : element("span", { class: "verdict right" }, share);
}

function votes(segment) {
  const total = segment.votes.reduce((sum, [n]) => sum + n, 0);
  const parts = segment.votes.map(([n, k]) => element("span", { "--color": classes[k].color, "--share": n, title: classes[k].name }));
  const lines = segment.votes.map(([n, k]) => element("li", {}, chip(k), " ", element("b", {}, percent(n / total)), ` (${n})`));
  return [element("div", { class: "bar" }, ...parts), element("ul", { class: "votes" }, ...lines)];
}

function neighbor([id, similarity], segment) {
  const row = data.rows[id], source = data.sources[row.picture], found = "path" in row;
  const svg = element("svg", { viewBox: found ? crop(row.box, row.size) : `0 0 ${row.size.join(" ")}`, "aria-hidden": "true" });
  svg.append(whole(source.file, row.size), ...(found ? spotlight(row.path, row.size) : []));
  return element(
    "li", {},
    element(
      "button",
      { type: "button", class: row.label === segment.label ? "neighbor" : "neighbor other", "--color": classes[row.label].color,
        "data-row": id, title: source.full, onclick: () => open(row, similarity) },
      svg,
      element("span", { class: "words" }, chip(row.label),
        element("span", { class: "similarity", title: "cosine similarity" }, similarity.toFixed(3)),
        found ? element("span", { class: "from" }, source.name) : element("span", { class: "from lost" }, "segment not found again")),
    ),
  );
}

function open(row, similarity) {
  const source = data.sources[row.picture], found = "path" in row;
  const svg = element("svg", { viewBox: `0 0 ${row.size.join(" ")}` }, whole(source.file, row.size));
  svg.append(...(found ? spotlight(row.path, row.size) : []));
  dialog.replaceChildren(
    element("div", { class: "title" }, element("h2", {}, chip(row.label)),
      element("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    svg,
    element("p", {}, `${source.full} \u00b7 similarity ${similarity.toFixed(3)}`),
  );
  dialog.showModal();
}

function select(k) {
  if (k < 0) return;
  selected = k;
  const segment = data.segments[k];
  marks.replaceChildren(...spotlight(segment.path, data.size));
  shapes.forEach((shape, other) => shape.classList.toggle("on", other === k));
  chips.forEach((button, other) => button.setAttribute("aria-current", other === k));
  const place = chips[k].parentElement; // scrolls the strip alone, not the page
  strip.scrollLeft = place.offsetLeft - strip.offsetLeft - (strip.clientWidth - place.offsetWidth) / 2;
  panel.replaceChildren(
    element("div", { class: "title" },
      element("h2", {}, element("span", { class: "number" }, `${k + 1} `), chip(segment.label)), verdict(segment)),
    element("p", { class: "facts" }, `${percent(segment.area)} of the picture`),
    element("h3", {}, `Votes of the ${segment.neighbors.length} nearest segments of the training set`),
    ...votes(segment),
    element("h3", {}, "Nearest segments, by cosine similarity"),
    element("ol", { class: "cards" }, ...segment.neighbors.map((pair) => neighbor(pair, segment))),
  );
  history.replaceState(null, "", `#segment-${k + 1}`);
}

function step(by) {
  const at = order.indexOf(selected);
  select(order[(at + by + order.length) % order.length]);
}

function sort(name) {
  order = orders[name];
  strip.replaceChildren(...order.map((k) => element("li", {}, chips[k])));
}

// ---- start

scene.setAttribute("viewBox", `0 0 ${width} ${height}`);
scene.append(
  whole(data.picture, data.size),
  ...(data.truth ? [whole(data.truth, data.size, { class: "truth" })] : []),
  ...shapes,
  marks,
);
document.querySelectorAll("[data-view]").forEach((b) => b.addEventListener("click", () => view(b.dataset.view)));
byId("order").addEventListener("change", (event) => { sort(event.target.value); select(order[0]); });
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || dialog.open || event.target.tagName === "SELECT" || event.altKey || event.ctrlKey || event.metaKey || !order.length) return;
  event.preventDefault();
  step(by);
});
const fromLink = () => Number((/^#segment-(\d+)$/.exec(location.hash) || [])[1]) - 1;
window.addEventListener("hashchange", () => { if (data.segments[fromLink()]) select(fromLink()); });
view("predicted");
sort("area");
if (data.segments.length) select(data.segments[fromLink()] ? fromLink() : 0);
else panel.append(element("p", {}, "The network has no finite embedding for this picture, so there are no segments."));
