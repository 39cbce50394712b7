// The page's behaviour: sort, filter, move, enlarge. It follows widgets.js in the same script.
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
  const about = make("span", { className: "about" }, make("span", { className: "name", textContent: name, title: name }));
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
[$("low").placeholder, $("high").placeholder] = page.range;
if (isCompared) $("hint").prepend(...colourKey(), ". ");
if (page.attention_limit !== null) {
  $("everywhere-label").hidden = $("legend").hidden = false;
  const limit = `${number(page.attention_limit, 1)} times an even share, or more.`;
  const when = "It shows while a photograph is pointed at or has the focus.";
  $("legend").append("Attention: none", paint([[...Array(256).keys()]]), `${limit} ${when}`);
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
