// The page: its elements, photographs with their attention and votes; sort, filter, move, enlarge.
const page = JSON.parse(document.getElementById("data").textContent);
const photos = page.photos, count = photos.image.length;
const [ownName, otherName] = page.names; // of the two scores, and of the two vote distributions
const digits = page.range[1] - page.range[0] > 2 ? 2 : 3;

const $ = (id) => document.getElementById(id);
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const say = (tag, className, textContent) => make(tag, { className, textContent });

const capital = (text) => text[0].toUpperCase() + text.slice(1);
const integer = (value) => value.toLocaleString("en");
function number(value, places = digits) {
  return value === null ? "–" : value.toFixed(places).replace(/^-0(\.0*)?$/, "0$1").replace("-", "−");
}
const percent = (value) => (value === null ? "–" : `${number(100 * value, 0)} %`);
const signed = (value) => (value > 0 ? "+" : "") + number(value);

// rows: of values of 0 to 255. The photograph shows through where there is little attention.
function paint(rows) {
  const [height, width] = [rows.length, rows[0].length];
  const canvas = make("canvas", { width, height, ariaHidden: "true" }), context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  rows.flat().forEach((value, n) => image.data.set([...page.colours[value], 100 + value / 2], 4 * n));
  context.putImageData(image, 0, 0);
  return canvas;
}
function addAttention(picture, i) {
  if (photos.attention[i] && !picture.querySelector("canvas")) picture.append(paint(photos.attention[i]));
}

const chunks = [...document.querySelectorAll("script.thumbnails")], unpacked = [];
function thumbnail(i) {
  const chunk = Math.floor(i / page.chunk);
  unpacked[chunk] ??= chunks[chunk].textContent.split("\n");
  return unpacked[chunk][i % page.chunk];
}
// fit: the picture's width, from its ratio of width to height. Returns null without a picture.
function addPicture(frame, i, fit) {
  const data = thumbnail(i);
  if (!data) {
    frame.replaceChildren(say("span", "nothing", photos.error[i] ? "No score" : "No picture"));
    return null;
  }
  const image = make("img", { alt: "", decoding: "async" });
  const picture = make("span", { className: "picture" }, image);
  image.addEventListener("load", () => {
    const ratio = image.naturalWidth / image.naturalHeight;
    picture.style.aspectRatio = String(ratio);
    picture.style.width = fit(ratio);
  });
  image.src = `data:image/jpeg;base64,${data}`;
  frame.replaceChildren(picture);
  return picture;
}

function votesInWords(i) {
  const shares = (votes) => votes.map((vote, n) => `${n + 1}: ${percent(vote)}`).join(", ");
  const named = [[ownName, photos.votes[i]], [otherName, photos.other_votes[i]]].filter(([, votes]) => votes.length);
  return named.map(([whose, votes]) => `Votes, ${whose}: ${shares(votes)}.`).join(" ");
}
// large: with the numbers of the levels, and a line at the largest share
function drawVotes(i, large = false) {
  const series = [photos.votes[i], photos.other_votes[i]].filter((votes) => votes.length);
  const levels = Math.max(...series.map((votes) => votes.length)), low = Math.min(0, ...series.flat());
  const high = Math.max(0.01, ...series.flat()), [wide, tall, top] = large ? [380, 150, 14] : [100, 30, 0];
  const step = wide / levels, y = (share) => top + ((tall - top) * (high - share)) / (high - low);
  const svg = draw("svg", large ? { viewBox: "0 0 380 170", role: "img", "aria-label": votesInWords(i) } : {
    class: "votes", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true",
  });
  series.forEach((votes, s) => votes.forEach((vote, n) => {
    const width = (step * 0.84) / series.length, height = Math.max(0.5, Math.abs(y(vote) - y(0)));
    const area = { x: n * step + s * width, y: Math.min(y(vote), y(0) - 0.5), width, height };
    svg.append(draw("rect", { class: s ? "bar second" : "bar", ...area }, draw("title", {}, `${n + 1}: ${number(100 * vote, 1)} %`)));
  }));
  if (large) {
    for (const share of [0, high]) svg.append(draw("line", { class: "axis", x1: 0, x2: wide, y1: y(share), y2: y(share) }));
    svg.append(draw("text", { x: 0, y: 10 }, percent(high)));
    for (let n = 0; n < levels; n++) svg.append(draw("text", { x: (n + 0.42) * step, y: 166, "text-anchor": "middle" }, n + 1));
  }
  return svg;
}

const box = (title, ...children) => make("section", { className: "box" }, say("h3", "", title), ...children);
const definitions = (pairs) => make("dl", {}, ...pairs.flatMap(([name, value]) => [say("dt", "", name), say("dd", "", value)]));
function table(head, rows) {
  const top = head.map((textContent) => make("th", { textContent, scope: "col" }));
  const body = rows.map(([name, ...cells]) => {
    return make("tr", {}, make("th", { textContent: name, scope: "row" }), ...cells.map((text) => say("td", "", text)));
  });
  return make("table", {}, make("thead", {}, make("tr", {}, ...top)), make("tbody", {}, ...body));
}

const chart = ({ title, text, picture }) =>
  box(title, make("img", { className: "chart", src: picture, alt: `${title}. ${text}` }), say("p", "under", text));
const colourKey = () => [say("span", "first", `■ ${ownName}`), " ", say("span", "second", `■ ${otherName}`)];

const hasValues = (values) => values.some((value) => value !== null);
const isCompared = hasValues(photos.other), failed = (i) => photos.score[i] === null;
const difference = photos.score.map((score, i) => (failed(i) || photos.other[i] === null ? null : score - photos.other[i]));

// The values of a photograph: shown on its card, and offered for sorting. size: sort by the absolute value
const keys = [
  { key: "name", label: "Name", values: photos.image },
  { key: "score", label: capital(ownName), values: photos.score, format: number },
  { key: "other", label: capital(otherName), values: photos.other, format: number },
  { key: "difference", label: "Difference", values: difference, size: true, format: signed },
  ...page.numbers.map((entry) => ({ ...entry, format: entry.share ? percent : number })),
].filter(({ key, values }) => key === "name" || hasValues(values));
const keyed = Object.fromEntries(keys.map((entry) => [entry.key, entry]));
function numbersOf(i) {
  const shown = keys.filter(({ format, values }) => format && values[i] !== null);
  return shown.map(({ label, format, values }) => [label, format(values[i])]);
}

function overview() {
  const boxes = [box("What was used", definitions(page.facts)), ...page.charts.map(chart)];
  if (page.figures.length) {
    const metrics = table(page.figures[0], page.figures.slice(1));
    for (const cell of metrics.querySelectorAll("td:nth-child(2)")) cell.className = "large";
    const remarks = make("div", {}, ...page.remarks.map((text) => say("p", "under", text)));
    const beside = make("div", { className: "beside" }, make("div", { className: "scrolls", tabIndex: 0 }, metrics), remarks);
    boxes.unshift(Object.assign(box("Against the true scores", beside), { className: "box wide" }));
  }
  $("overview").append(...boxes);
}

const gallery = $("gallery");
const cards = photos.image.map((name, i) => {
  const about = make("span", { className: "about" }, make("span", { className: "name", textContent: name.slice(page.cut), title: name }));
  about.append(...(failed(i) ? [say("span", "failed name", photos.error[i] || "No score")] : scoresOf(i)));
  const card = make("button", { className: "card", type: "button", tabIndex: -1 }, say("span", "frame", ""), about);
  const words = photos.error[i] ? [photos.error[i]] : numbersOf(i).map((pair) => pair.join(" "));
  card.ariaLabel = [name, ...words].join(", ");
  card.dataset.i = i;
  return make("li", {}, card);
});
function scoresOf(i) {
  const compared = photos.other[i] !== null;
  const scores = make("span", { className: "scores" }, say("b", compared ? "first" : "", number(photos.score[i])));
  if (compared) scores.append(say("b", "second", number(photos.other[i])));
  return [
    scores,
    ...(photos.votes[i].length ? [say("span", "place", "")] : []),
    ...(compared ? [say("span", "more muted", `difference ${signed(difference[i])}`)] : []),
  ];
}
const cardOf = (event) => event.target.closest?.(".card");
const numberOf = (card) => Number(card?.dataset.i ?? -1);

// Pictures and votes are drawn when their card scrolls near, attention when it is pointed at or asked for.
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    const card = target.firstChild, i = numberOf(card);
    addPicture(card.querySelector(".frame"), i, (ratio) => `${Math.min(100, 75 * ratio)}%`);
    card.querySelector(".place")?.append(drawVotes(i));
    if ($("everywhere").checked) attend(card);
  }
}, { rootMargin: "900px 0px" });
function attend(card) {
  const picture = card?.querySelector(".picture");
  if (picture) addAttention(picture, numberOf(card));
}
gallery.addEventListener("pointerover", (event) => attend(cardOf(event)));
gallery.addEventListener("focusin", (event) => {
  const card = cardOf(event);
  attend(card);
  card.setAttribute("aria-description", votesInWords(numberOf(card)));
  rove(card);
});
gallery.addEventListener("click", (event) => view(order.indexOf(numberOf(cardOf(event)))));

// One card at a time is in the tab order; arrow keys move among them.
let stop = null;
function rove(card) {
  if (stop) stop.tabIndex = -1;
  stop = card;
  if (stop) stop.tabIndex = 0;
}
const plain = (event) => !(event.ctrlKey || event.altKey || event.metaKey || event.shiftKey);
gallery.addEventListener("keydown", (event) => {
  const at = order.indexOf(numberOf(cardOf(event)));
  const columns = getComputedStyle(gallery).gridTemplateColumns.split(" ").length;
  const moves = {
    ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: order.length - 1,
  };
  if (at < 0 || !(event.key in moves) || !plain(event)) return;
  event.preventDefault();
  if (moves[event.key] in order) cards[order[moves[event.key]]].firstChild.focus();
});
let order = [];
const collator = new Intl.Collator(undefined, { numeric: true });
function sorted(rows) {
  const { key, values, size } = keyed[$("sort").value], direction = Number($("direction").value);
  const rank = size ? values.map((value) => (value === null ? null : Math.abs(value))) : values;
  const last = (i) => (photos.error[i] ? 2 : rank[i] === null ? 1 : 0); // whatever the direction
  const compare = key === "name" ? (a, b) => collator.compare(rank[a], rank[b]) : (a, b) => rank[a] - rank[b];
  return rows.sort((a, b) => last(a) - last(b) || direction * compare(a, b) || a - b);
}
function update() {
  const text = $("text").value.trim().toLocaleLowerCase(), errors = $("errors").value;
  const limit = (id, none) => ($(id).value === "" ? none : Number($(id).value));
  const low = limit("low", -Infinity), high = limit("high", Infinity), limited = low > -Infinity || high < Infinity;
  const within = (score) => score !== null && score >= low && score <= high;
  order = sorted([...cards.keys()].filter((i) =>
    photos.image[i].toLocaleLowerCase().includes(text)
    && (errors === "all" || failed(i) === (errors === "only"))
    && (!limited || within(photos.score[i]))));
  const fragment = document.createDocumentFragment();
  for (const i of order) fragment.append(cards[i]);
  gallery.replaceChildren(fragment);
  $("count").textContent = `${integer(order.length)} of ${integer(count)} photographs`;
  if (!order.includes(numberOf(stop))) rove(order.length ? cards[order[0]].firstChild : null);
}
function nameDirections() {
  const byName = $("sort").value === "name", options = $("direction").options;
  const words = byName ? ["Z to A", "A to Z"] : ["Highest first", "Lowest first"];
  words.forEach((word, n) => { options[n].textContent = word; });
  $("direction").value = byName ? "1" : "-1";
}

const viewer = $("viewer");
let viewed = -1, attentive = false;
function view(position) {
  if (!(position in order)) return;
  viewed = position;
  const i = order[position], frame = make("div", { className: "view" }), about = make("div");
  const picture = addPicture(frame, i, (ratio) => `min(100cqw, ${100 * ratio}cqh)`);
  if (picture) picture.firstChild.alt = photos.image[i];
  $("viewer-title").textContent = photos.image[i];
  $("place").textContent = `${integer(position + 1)} of ${integer(order.length)}`;
  $("previous").disabled = position === 0;
  $("next").disabled = position === order.length - 1;
  if (photos.error[i]) about.append(say("p", "failed", photos.error[i]));
  about.append(definitions(numbersOf(i)));
  if (photos.votes[i].length) about.append(say("h3", "", "Votes, as the network gives them"), drawVotes(i, true));
  if (isCompared) about.append(make("p", { className: "under" }, ...colourKey()));
  if (picture && photos.attention[i]) about.append(attentionToggle(picture, i));
  if (photos.link[i]) {
    const link = make("a", { href: photos.link[i], target: "_blank", rel: "noopener", textContent: "Open the original file" });
    about.append(make("p", {}, link));
  }
  $("viewed").replaceChildren(frame, about);
  if (!viewer.open) viewer.showModal();
  $("viewer-title").focus();
}
function attentionToggle(picture, i) {
  const toggle = make("input", { type: "checkbox", checked: attentive });
  function show() {
    attentive = toggle.checked;
    if (attentive) addAttention(picture, i);
    picture.classList.toggle("on", attentive);
  }
  toggle.addEventListener("change", show);
  show();
  return make("label", { className: "check" }, toggle, "Show the attention");
}
viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !plain(event)) return;
  event.preventDefault();
  view(viewed + step);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close(); // beside it
});
viewer.addEventListener("close", () => cards[order[viewed]].firstChild.focus());
$("previous").addEventListener("click", () => view(viewed - 1));
$("next").addEventListener("click", () => view(viewed + 1));
$("close").addEventListener("click", () => viewer.close());

$("notes").append(...page.notes.map((note) => say("li", "", note)));
$("notes").hidden = !page.notes.length;
const first = keyed.score ? "score" : "name";
$("sort").append(...keys.map(({ key, label }) => make("option", { value: key, textContent: label, defaultSelected: key === first })));
$("errors-label").hidden = !photos.error.some(Boolean);
const scores = photos.score.filter((score) => score !== null);
if (scores.length) [$("low").placeholder, $("high").placeholder] = [Math.min(...scores), Math.max(...scores)].map((score) => number(score));
if (isCompared) $("hint").prepend(...colourKey(), ". ");
if (page.attention_limit !== null) {
  $("everywhere-label").hidden = $("legend").hidden = false;
  const limit = `${number(page.attention_limit, 1)} times an even share, or more.`;
  const when = "It shows while a photograph is pointed at or has the focus.";
  $("legend").append("Attention: none", paint([[...Array(256).keys()]]), `${limit} `, say("span", "pointer", when));
}
$("everywhere").addEventListener("change", () => {
  gallery.classList.toggle("everywhere", $("everywhere").checked);
  if ($("everywhere").checked) for (const card of cards) attend(card.firstChild);
});
let waiting = 0;
$("controls").addEventListener("input", (event) => {
  if (event.target.id === "everywhere") return;
  if (event.target.id === "sort") nameDirections();
  clearTimeout(waiting);
  waiting = setTimeout(update, event.target.tagName === "INPUT" ? 120 : 0); // typing goes on meanwhile
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("reset", () => setTimeout(() => {
  gallery.classList.remove("everywhere");
  nameDirections();
  update();
}));
overview();
nameDirections();
update();
for (const card of cards) near.observe(card);
