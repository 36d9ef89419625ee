"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// ---- elements: el("td.num", text or children...) never parses HTML, so that texts can hold anything
function el(spec, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const isNumber = (value) => typeof value === "number";
const fixed = (value, digits = 1) => (isNumber(value) ? value.toFixed(digits) : "–");

// ---- header and scores
function showHeader() {
  byId("run").textContent = data.run;
  const parts = [data.step === null ? "no validation was scored yet" : `step ${data.step}`];
  if (data.about.asr) parts.push(`ASR ${data.about.asr}`);
  if (data.about.bleu) parts.push(`BLEU ${data.about.bleu}`);
  byId("about").textContent = parts.join(" · ");
}

function meter(metrics, name) {
  const [floor, value, ceiling] = ["shuffled", "val", "ceiling"].map((kind) => metrics[`${kind}_asr_bleu_${name}`]);
  if (!isNumber(value)) return el("span");
  const bar = el("div.meter", el("i"), el("i.value"));
  bar.querySelector(".value").style.width = `${Math.min(100, value)}%`;
  for (const mark of [floor, ceiling]) {
    if (!isNumber(mark)) continue;
    const tick = el("b");
    tick.style.left = `calc(${Math.min(100, mark)}% - 1px)`;
    bar.append(tick);
  }
  bar.title = `floor ${fixed(floor)} · model ${fixed(value)} · ceiling ${fixed(ceiling)}`;
  return bar;
}

function showScores() {
  const metrics = data.metrics;
  const names = new Set(data.samples.map((sample) => sample.dataset));
  for (const name of Object.keys(metrics)) {
    const match = name.match(/^val_(?:asr_bleu|txt_bleu)_(.+)$/);
    if (match) names.add(match[1]);
  }
  const columns = [
    ["Floor", (ds) => metrics[`shuffled_asr_bleu${ds}`]], ["ASR-BLEU", (ds) => metrics[`val_asr_bleu${ds}`]],
    ["Ceiling", (ds) => metrics[`ceiling_asr_bleu${ds}`]], ["Text BLEU", (ds) => metrics[`val_txt_bleu${ds}`]],
    ["ASR-WER", (ds) => metrics[`val_asr_wer${ds}`]], ["Empty turns", (ds) => metrics[`val_empty_rate${ds}`]],
    ["Loss", (ds) => metrics[`val_loss${ds}`], 3],
  ];
  const head = el("tr", el("th", "Data set"), ...columns.map(([title]) => el("th.num", title)), el("th", "Floor to ceiling"));
  const cells = (ds) => columns.map(([, get, digits]) => el("td.num", fixed(get(ds), digits)));
  const rows = [...names].sort().map((name) => el("tr", el("th", name), ...cells(`_${name}`), el("td", meter(metrics, name))));
  if (rows.length !== 1) rows.push(el("tr", el("th", "all"), ...cells(""), el("td")));
  byId("scores").append(el("table", el("thead", head), el("tbody", ...rows)));
}

// ---- history
function chart({ title, from_zero, series }) {
  const [width, height, left, bottom, top] = [500, 170, 38, 20, 8];
  const all = series.flatMap((one) => one.points);
  const [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (from_zero) y0 = Math.min(0, y0);
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const x = (step) => left + ((step - x0) / (x1 - x0 || 1)) * (width - left - 6);
  const y = (value) => top + ((y1 - value) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    picture.append(svg("line", { x1: left, x2: width - 6, y1: y(value), y2: y(value), stroke: "var(--line)" }));
    const digits = y1 - y0 < 2 ? 2 : y1 - y0 < 20 ? 1 : 0;
    picture.append(svg("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, value.toFixed(digits)));
  }
  picture.append(svg("text", { x: left, y: height - 4 }, `step ${x0}`));
  if (x1 > x0) picture.append(svg("text", { x: width - 6, y: height - 4, "text-anchor": "end" }, String(x1)));
  const legend = el("ul.legend");
  const subject = (name) => name.replace(/^(val|ceiling)_/, ""); // a ceiling has the color of what it bounds
  const subjects = [...new Set(series.map(({ name }) => subject(name)))];
  series.forEach(({ name, points }) => {
    const color = `var(--s${subjects.indexOf(subject(name)) % 6})`;
    const dash = name.startsWith("ceiling") ? "4 3" : "none";
    const path = points.map(([step, value], k) => `${k ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`);
    picture.append(svg("path", {
      d: path.join(""), fill: "none", stroke: color, "stroke-width": 1.8, "stroke-dasharray": dash, "stroke-linejoin": "round",
    }));
    const [step, value] = points[points.length - 1];
    picture.append(svg("circle", { cx: x(step), cy: y(value), r: 2.6, fill: color }));
    const swatch = el("span");
    swatch.style.borderTopColor = color;
    swatch.style.borderTopStyle = dash === "none" ? "solid" : "dashed";
    const digits = y1 - y0 < 20 ? 3 : 1;
    legend.append(el("li", swatch, `${name} ${value.toFixed(digits)}`));
  });
  return el("figure", el("figcaption", title), picture, legend);
}

function showCharts() {
  byId("charts").append(...data.charts.map(chart));
  if (!data.charts.length) byId("charts").append(el("p.none", "metrics.jsonl has no row yet."));
}

// ---- one dialogue
const TRACKS = [["user", "User"], ["reference", "Reference"], ["generated", "Generated"]];
const PLAYERS = [
  ["user", "1 · User"], ["reference", "2 · Reference agent"], ["generated", "3 · Generated agent"],
  ["mix", "4 · User left, generated right"],
];

function waveform(peaks, loudest) {
  const heights = peaks.map((peak) => Math.max(0.7, (48 * peak) / loudest));
  const upper = heights.map((height, i) => `${i ? "L" : "M"}${i} ${(50 - height).toFixed(1)}`);
  const lower = heights.map((height, i) => `L${i} ${(50 + height).toFixed(1)}`).reverse();
  const box = { viewBox: `0 0 ${Math.max(1, peaks.length - 1)} 100`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return svg("svg", box, svg("path", { d: `${upper.join("")}${lower.join("")}Z`, fill: "currentColor", opacity: 0.75 }));
}

function lane(sample, track) {
  const loudest = sample.peaks ? Math.max(1, ...Object.values(sample.peaks).flat()) : 1;
  const node = el(`div.lane.${track}`, sample.peaks ? waveform(sample.peaks[track], loudest) : null);
  const turns = {
    user: sample.turns.filter((turn) => turn.role === "user"),
    reference: sample.turns.filter((turn) => turn.role === "agent"),
    generated: sample.generated_turns,
  }[track];
  for (const turn of turns) {
    const block = el("div.turn", turn.text || "…");
    block.style.left = `${(100 * turn.start_s) / sample.duration_s}%`;
    block.style.width = `${(100 * Math.max(0.08, turn.end_s - turn.start_s)) / sample.duration_s}%`;
    block.title = `${turn.start_s.toFixed(2)}–${turn.end_s.toFixed(2)} s: ${turn.text}`;
    node.append(block);
  }
  return node;
}

function axis(duration) {
  const step = [0.5, 1, 2, 5, 10, 20, 30, 60].find((candidate) => duration / candidate <= 12) || 120;
  const node = el("div.axis");
  for (let second = 0; second < duration - step / 2; second += step) {
    const label = el("span", String(second));
    label.style.left = `${(100 * second) / duration}%`;
    node.append(label);
  }
  const end = el("span", `${duration.toFixed(1)} s`);
  end.style.left = "100%";
  node.append(end);
  return node;
}

function players(sample, playhead) {
  return PLAYERS.map(([track, title]) => {
    const audio = el("audio");
    audio.controls = true;
    audio.preload = "metadata";
    audio.dataset.track = track;
    audio.src = sample.audio[track];
    const follow = () => {
      playhead.style.left = `${Math.min(100, (100 * audio.currentTime) / sample.duration_s)}%`;
      if (!audio.paused) requestAnimationFrame(follow);
    };
    audio.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
      follow();
    });
    audio.addEventListener("seeked", follow);
    const box = el("div", el(`label.${track}`, title), audio);
    audio.setAttribute("aria-label", title);
    return box;
  });
}

function seek(card, second) {
  for (const audio of card.querySelectorAll("audio")) {
    audio.currentTime = Math.max(0, Math.min(second, (audio.duration || second) - 0.01));
  }
}

function texts(sample) {
  const said = (text) => (text ? text : el("span.none", "nothing"));
  const wer = (value) => el(`td.num${isNumber(value) ? (value < 20 ? ".good" : value > 60 ? ".bad" : "") : ""}`, fixed(value, 0));
  const hasCeiling = sample.scored_turns.some((turn) => turn.ceiling_asr !== null);
  const head = ["From", "Reference", "Model's text", "Heard in its speech", "WER"].concat(hasCeiling ? ["Heard in the ceiling"] : []);
  const rows = sample.scored_turns.map((turn) => el("tr",
    el("td.num", `${turn.start_s.toFixed(1)} s`), el("td", turn.reference), el("td", said(turn.generated_text)),
    el("td", said(turn.asr)), wer(turn.wer), hasCeiling ? el("td", said(turn.ceiling_asr)) : null));
  const cells = head.map((title) => el(title === "WER" || title === "From" ? "th.num" : "th", title));
  return el("div.scroll", el("table", el("thead", el("tr", ...cells)), el("tbody", ...rows)));
}

function fill(card, sample) {
  if (card.querySelector(".body")) return;
  const playhead = el("div.playhead");
  playhead.style.left = "0";
  const tracks = el("div.tracks", ...TRACKS.map(([track]) => lane(sample, track)), axis(sample.duration_s), playhead);
  tracks.addEventListener("click", (event) => {
    const box = tracks.getBoundingClientRect();
    const second = ((event.clientX - box.left) / box.width) * sample.duration_s;
    playhead.style.left = `${(100 * second) / sample.duration_s}%`;
    seek(card, second);
  });
  const labels = el("div.labels", ...TRACKS.map(([track, title]) => el(`div.name.${track}`, title)));
  const body = el("div.body", el("div.timeline", labels, tracks));
  if (sample.audio) body.append(el("div.players", ...players(sample, playhead)));
  else body.append(el("p.none", "The audio of this dialogue was not kept (max_samples_per_dataset)."));
  body.append(texts(sample));
  card.append(body);
}

function makeCard(sample) {
  const heard = isNumber(sample.asr_wer) ? `WER ${fixed(sample.asr_wer, 0)} %` : "";
  const card = el("details", el("summary",
    el("span.id", sample.cut_id), el("span.tag", sample.dataset),
    el("span.num.muted", `${sample.duration_s.toFixed(1)} s`), el("span.num", heard)));
  card.addEventListener("toggle", () => card.open && fill(card, sample));
  return card;
}

// ---- list, filter, order, keys
const cards = data.samples.map((sample) => ({ sample, card: makeCard(sample) }));
const wer = (sample) => (isNumber(sample.asr_wer) ? sample.asr_wer : -1);
const ORDERS = {
  worst: (a, b) => wer(b.sample) - wer(a.sample),
  best: (a, b) => wer(a.sample) - wer(b.sample),
  name: (a, b) => a.sample.cut_id.localeCompare(b.sample.cut_id),
};

function arrange() {
  const [dataset, audible] = [byId("dataset").value, byId("audible").checked];
  const shown = cards.filter(({ sample }) => (!dataset || sample.dataset === dataset) && (!audible || sample.audio));
  shown.sort(ORDERS[byId("sort").value]);
  const hidden = cards.filter((entry) => !shown.includes(entry));
  for (const { card } of hidden) for (const audio of card.querySelectorAll("audio")) audio.pause();
  byId("samples").replaceChildren(...shown.map(({ card }) => card));
  byId("count").textContent = `${shown.length} of ${cards.length}`;
}

function current() {
  const focused = document.activeElement && document.activeElement.closest("details");
  return focused || document.querySelector("#samples details[open]");
}

function step(offset) {
  const shown = [...document.querySelectorAll("#samples details")];
  const now = current();
  const next = shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(now) + offset))];
  if (!next || next === now) return;
  if (now) now.open = false;
  next.open = true;
  fill(next, cards.find(({ card }) => card === next).sample);
  next.querySelector("summary").focus();
  next.scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input, audio")) return;
  const card = current();
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (card && "1234".includes(event.key)) {
    const audio = card.querySelectorAll("audio")[Number(event.key) - 1];
    if (audio) audio.paused ? audio.play() : audio.pause();
  } else if (card && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const audios = [...card.querySelectorAll("audio")];
    const playing = audios.find((audio) => !audio.paused) || audios[0];
    if (playing) seek(card, playing.currentTime + (event.key === "ArrowLeft" ? -2 : 2));
  } else return;
  event.preventDefault();
}

showHeader();
showScores();
showCharts();
const names = [...new Set(data.samples.map((sample) => sample.dataset))].sort();
byId("dataset").append(new Option("all", ""), ...names.map((name) => new Option(name, name)));
for (const id of ["dataset", "sort", "audible"]) byId(id).addEventListener("change", arrange);
document.addEventListener("keydown", onKey);
byId("audible").checked = data.samples.some((sample) => sample.audio);
arrange();
if (!cards.length) byId("samples").append(el("p.none", "No dialogue was scored yet."));
const first = document.querySelector("#samples details");
if (first) first.open = true;
