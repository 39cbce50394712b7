// The page's building blocks: elements, numbers as text, photographs with their attention, votes, tables. page.js follows it.
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
