// The page's building blocks: elements, numbers as text, photographs with their attention, votes, tables. page.js follows it.
const page = JSON.parse(document.getElementById("data").textContent);
const photos = page.photos, count = photos.image.length, other = page.other;
const [ownName, otherName] = other ? ["this run", other.name] : ["predicted", "true"]; // the names of the two vote distributions
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

const integer = (value) => value.toLocaleString("en");
function number(value, places = digits) {
  return value === null ? "–" : value.toFixed(places).replace(/^-0(\.0*)?$/, "0$1").replace("-", "−");
}
const percent = (value) => (value === null ? "–" : `${number(100 * value, 0)} %`);
const signed = (value, format) => (value > 0 ? "+" : "") + format(value);

// values: 0 to 255, row by row. The photograph shows through where there is little attention.
function paint(height, width, values) {
  const canvas = make("canvas", { width, height, ariaHidden: "true" }), context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  values.forEach((value, n) => image.data.set([...page.colours[value], 100 + value / 2], 4 * n));
  context.putImageData(image, 0, 0);
  return canvas;
}
function addAttention(picture, i) {
  if (!photos.attention[i] || picture.querySelector("canvas")) return;
  const [height, width, data] = photos.attention[i];
  picture.append(paint(height, width, Array.from(atob(data), (letter) => letter.charCodeAt(0))));
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

const chart = (src, alt) => make("img", { className: "chart", src, alt });
function distribution({ name, edges, counts, mean, quartiles, number: all, picture }) {
  const [least, lower, median, upper, most] = quartiles.map((value) => number(value));
  const words = `${integer(all)} photographs: mean ${number(mean)}, median ${median}, half of them between ${lower} and `
    + `${upper}, all between ${least} and ${most}.`;
  const rows = counts.map((value, n) => [`${number(edges[n])} to ${number(edges[n + 1])}`, integer(value)]);
  const details = make("details", {}, say("summary", "", "As a table"), table(["Score", "Photographs"], rows));
  const title = name === "Score" ? "Distribution of scores" : `Distribution: ${name === other?.name ? name : name.toLowerCase()}`;
  return box(title, chart(picture, `Distribution of scores. ${words}`), say("p", "under", words), details);
}
function scatter(title, { picture, number: all }, listed) {
  const words = `${integer(all)} photographs; the stronger the colour, the more are there.`;
  return box(title, chart(picture, `${title}: ${words} ${listed} are listed.`), say("p", "under", words));
}

// The photographs with the largest absolute `values`
function listOf(title, values, words, format) {
  const rows = [...values.keys()].filter((i) => values[i] !== null);
  rows.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b);
  return box(title, make("ol", {}, ...rows.slice(0, page.list).map((i) => {
    const parts = [say("span", "name", photos.image[i]), say("span", "muted", words(i)), say("b", "", signed(values[i], format))];
    const button = make("button", { type: "button" }, ...parts);
    button.addEventListener("click", () => reveal(i));
    return make("li", {}, button);
  })));
}
