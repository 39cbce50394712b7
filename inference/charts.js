// What the page is drawn with: elements, numbers in words, pictures with their attention, votes, charts. page.js comes after it.
const page = JSON.parse(document.getElementById("data").textContent);
const photos = page.photos, count = photos.image.length, other = page.other;
const [own, theirs] = other ? ["this run", other.name] : ["predicted", "true"]; // whose votes a photograph has
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

const whole = (value) => value.toLocaleString("en");
function number(value, places = digits) {
  return value === null ? "–" : value.toFixed(places).replace(/^-0(\.0*)?$/, "0$1").replace("-", "−");
}
const percent = (value) => (value === null ? "–" : `${number(100 * value, 0)} %`);
const signed = (value, format) => (value > 0 ? "+" : "") + format(value);

const CIVIDIS = ["00224e", "1a386f", "434e6c", "61656f", "7d7c78", "9b9476", "bcae6c", "dec958", "fee838"];
const colours = Array.from({ length: 256 }, (_, value) => {
  const at = (value / 255) * (CIVIDIS.length - 1), low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return [0, 2, 4].map((place) => {
    const [a, b] = [low, low + 1].map((n) => parseInt(CIVIDIS[n].slice(place, place + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
});
// values: 0 to 255, row by row; where there is little attention the photograph shows through
function paint(height, width, values) {
  const canvas = make("canvas", { width, height, ariaHidden: "true" }), context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  values.forEach((value, n) => image.data.set([...colours[value], 100 + value / 2], 4 * n));
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
// fit: gives the picture its width once its own ratio, width over height, is known. Null: there is no picture
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
  const told = [[own, photos.votes[i]], [theirs, photos.other_votes[i]]].filter(([, votes]) => votes.length);
  return told.map(([whose, votes]) => `Votes, ${whose}: ${shares(votes)}.`).join(" ");
}
const seriesOf = (i) => [photos.votes[i], photos.other_votes[i]].filter((votes) => votes.length);
function smallVotes(i) {
  const series = seriesOf(i), top = Math.max(0.01, ...series.flat());
  const svg = draw("svg", { class: "votes", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  series.forEach((votes, s) => {
    const step = 100 / votes.length, width = (step * 0.84) / series.length;
    votes.forEach((vote, n) => {
      const height = Math.max(0.5, (30 * Math.max(0, vote)) / top);
      const x = n * step + s * width, y = 30 - height;
      svg.append(draw("rect", { class: s ? "bar second" : "bar", x, y, width, height }));
    });
  });
  return svg;
}
function largeVotes(i) {
  const series = seriesOf(i), levels = Math.max(...series.map((votes) => votes.length));
  const low = Math.min(0, ...series.flat()), high = Math.max(0.05, ...series.flat());
  const { svg, x, y } = axes({
    label: votesInWords(i), across: [0.5, levels + 0.5], up: [low, high], xs: [...Array(levels).keys()].map((n) => n + 1),
    ys: ticks(low, high, 5), xLabel: "vote", yLabel: "share of votes", format: percent, height: 220,
  });
  series.forEach((votes, s) => votes.forEach((vote, n) => {
    const wide = 0.8 / series.length, at = n + 0.6 + s * wide;
    svg.append(draw("rect", {
      class: s ? "bar second" : "bar", x: x(at), width: x(at + wide) - x(at) - 1, y: Math.min(y(0), y(vote)),
      height: Math.max(0.5, Math.abs(y(0) - y(vote))),
    }, draw("title", {}, `${n + 1}: ${number(100 * vote, 1)} %`)));
  }));
  return svg;
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough)), found = [];
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    found.push(Number((n * step).toPrecision(10)));
  }
  return found;
}
// across, up: [low, high]; xs, ys: ticks; format: of the latter. x and y give places in the SVG
function axes({ label, across, up, xs, ys, xLabel, yLabel, format = String, height = 210 }) {
  const left = 56, right = 372, top = 10, bottom = height - 34;
  const x = (value) => left + ((right - left) * (value - across[0])) / (across[1] - across[0]);
  const y = (value) => bottom - ((bottom - top) * (value - up[0])) / (up[1] - up[0]);
  const svg = draw("svg", { viewBox: `0 0 380 ${height}`, role: "img", "aria-label": label });
  const write = (text, place) => svg.append(draw("text", { "text-anchor": "middle", ...place }, text));
  for (const value of ys) {
    svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: y(value), y2: y(value) }));
    write(format(value), { x: left - 6, y: y(value) + 4, "text-anchor": "end" });
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  for (const value of xs) write(String(value), { x: x(value), y: bottom + 15 });
  write(xLabel, { x: (left + right) / 2, y: height - 4 });
  write(yLabel, { transform: `translate(11 ${(top + bottom) / 2}) rotate(-90)` });
  return { svg, x, y };
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

function distribution({ name, low, high, counts, mean, quartiles, number: all }) {
  const [least, lower, median, upper, most] = quartiles.map((value) => number(value));
  const words = `${whole(all)} photographs: mean ${number(mean)}, median ${median}, half of them between ${lower} and `
    + `${upper}, all between ${least} and ${most}.`;
  const up = [0, Math.max(...counts)], step = (high - low) / counts.length, second = other && name === other.name;
  const { svg, x, y } = axes({
    label: `Distribution of scores. ${words}`, across: [low, high], up, xs: ticks(low, high, 7),
    ys: ticks(...up, 4).filter(Number.isInteger), xLabel: "score", yLabel: "photographs", format: whole,
  });
  counts.forEach((value, n) => {
    const at = x(low + n * step), width = x(low + step) - x(low) - 1, height = y(0) - y(value);
    svg.append(draw("rect", { class: second ? "bar second" : "bar", x: at + 0.5, width, y: y(value), height }));
  });
  const rows = counts.map((value, n) => [`${number(low + n * step)} to ${number(low + (n + 1) * step)}`, whole(value)]);
  const details = make("details", {}, say("summary", "", "As a table"), table(["Score", "Photographs"], rows));
  const title = name === "Score" ? "Distribution of scores" : `Distribution: ${second ? name : name.toLowerCase()}`;
  return box(title, svg, say("p", "under", words), details);
}

// values: those across; the scores are up. density: of all photographs, drawn where they are not all on the page
function scatter({ title, values, density, xLabel, yLabel, diagonal, label }) {
  const pad = ([low, high]) => [low - (high - low) * 0.03, high + (high - low) * 0.03];
  let [across, up] = density.ranges.map(pad);
  if (diagonal) across = up = [Math.min(across[0], up[0]), Math.max(across[1], up[1])];
  const { svg, x, y } = axes({ label, across, up, xs: ticks(...across, 6), ys: ticks(...up, 6), xLabel, yLabel, height: 330 });
  svg.classList.add("scatter");
  const shown = [...values.keys()].filter((i) => photos.score[i] !== null && values[i] !== null);
  const points = shown.map((i) => ({ i, cx: x(values[i]), cy: y(photos.score[i]) })), some = density.number > points.length;
  if (some) drawDensity(svg, density, x, y);
  if (diagonal) {
    const [low, high] = across;
    svg.append(draw("line", { class: "diagonal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
  }
  const r = points.length > 1000 ? 1.6 : 2.4;
  for (const { cx, cy } of points) svg.append(draw("circle", { class: "dot", cx, cy, r }));
  const ring = draw("circle", { class: "ring", r: 6, visibility: "hidden" });
  svg.append(ring);
  const usual = (some ? `Grey: all ${whole(density.number)}; dots: the ${whole(points.length)} on this page. ` : "")
    + "Point at a dot for its name; click it to find the photograph.";
  const under = say("p", "under", usual);
  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = ({ cx, cy }) => (cx - at.x) ** 2 + (cy - at.y) ** 2;
    const best = points.reduce((a, b) => (far(b) < far(a) ? b : a), points[0]);
    return best && far(best) < 144 ? best : null;
  }
  function point(found) {
    ring.setAttribute("visibility", found ? "visible" : "hidden");
    under.textContent = usual;
    if (!found) return;
    ring.setAttribute("cx", found.cx);
    ring.setAttribute("cy", found.cy);
    const [score, value] = [photos.score[found.i], values[found.i]].map((each) => number(each));
    under.textContent = `${photos.image[found.i]}: ${yLabel} ${score}, ${xLabel} ${value}`;
  }
  svg.addEventListener("pointermove", (event) => point(nearest(event)));
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found) reveal(found.i);
  });
  return box(title, svg, under);
}
function drawDensity(svg, { ranges: [[left, right], [low, high]], side, cells }, x, y) {
  const most = Math.max(...cells.map((cell) => cell[2])), wide = (right - left) / side, tall = (high - low) / side;
  const width = x(left + wide) - x(left) + 0.3, height = y(low) - y(low + tall) + 0.3;
  for (const [column, row, many] of cells) {
    const place = { x: x(left + column * wide), y: y(low + (row + 1) * tall), width, height };
    const opacity = 0.12 + 0.68 * Math.sqrt(many / most);
    svg.append(draw("rect", { class: "cell", "shape-rendering": "crispEdges", opacity, ...place }));
  }
}

// The photographs whose `values` are largest, up or down
function listOf(title, values, words, format) {
  const rows = [...values.keys()].filter((i) => values[i] !== null);
  rows.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b);
  return box(title, make("ol", {}, ...rows.slice(0, page.list).map((i) => {
    const parts = [say("span", "name", photos.image[i]), say("span", "muted", words(i)), say("b", "", signed(values[i], format))];
    const found = make("button", { type: "button" }, ...parts);
    found.addEventListener("click", () => reveal(i));
    return make("li", {}, found);
  })));
}
