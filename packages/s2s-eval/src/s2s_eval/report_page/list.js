// ---- list, filter, order, keys
const searchable = (dialogue) => [dialogue.cut_id, ...dialogue.turns.map((turn) => turn.text), dialogue.generated_text,
  ...dialogue.scored_turns.map((turn) => turn.asr)].join("\n").toLowerCase();
const cards = data.dialogues.map((dialogue, number) => {
  dialogue.number = number;
  return { dialogue, text: searchable(dialogue), card: makeCard(dialogue) };
});

function order(choice) {
  const byName = (a, b) => a.dialogue.cut_id.localeCompare(b.dialogue.cut_id, "en", { numeric: true });
  const [name, which] = choice.split(":");
  if (name === "name") return byName;
  if (name === "duration") return (a, b) => b.dialogue.duration_s - a.dialogue.duration_s || byName(a, b);
  const better = SCORES.find(([score]) => score === name)[5];
  const sign = which === "best" ? -better : better; // sorted upwards: the first is the worst
  return (a, b) => {
    const [x, y] = [a, b].map((entry) => entry.dialogue.scores[name]);
    if (!isNumber(x) || !isNumber(y)) return isNumber(y) - isNumber(x) || byName(a, b); // those without it come last
    return sign * (x - y) || byName(a, b);
  };
}

function arrange() {
  const [dataset, audible] = [byId("dataset").value, byId("audible").checked];
  const choice = byId("sort").value;
  const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = cards.filter(({ dialogue, text }) => (!dataset || dialogue.dataset === dataset)
    && (!audible || dialogue.audio) && wanted.every((word) => text.includes(word)));
  found.sort(order(choice));
  const kept = new Set(found);
  for (const entry of cards) if (!kept.has(entry)) entry.card.open = false;
  for (const { card } of found) {
    for (const chip of card.querySelectorAll("summary .chip")) chip.classList.toggle("sorted", chip.dataset.score === choice.split(":")[0]);
  }
  byId("dialogues").replaceChildren(...found.map(({ card }) => card));
  if (!found.length) byId("dialogues").append(el("p.none", cards.length ? "No dialogue is like that." : "No dialogue was scored yet."));
  byId("count").textContent = cards.length ? `${found.length} of ${cards.length}` : "";
}

function current() {
  return document.activeElement?.closest("details.card") || document.querySelector("#dialogues details[open]");
}

function step(offset) {
  const listed = [...document.querySelectorAll("#dialogues details.card")];
  const now = current();
  const next = listed[Math.max(0, Math.min(listed.length - 1, listed.indexOf(now) + offset))];
  if (!next || next === now) return;
  if (now) now.open = false;
  next.open = true;
  next.querySelector("summary").focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function playOrPause(card, index) {
  const audio = card.querySelectorAll("audio")[index];
  if (!audio?.src) return;
  if (!audio.paused) return audio.pause();
  pauseOthers(audio); // now: an event "play" of the one before may still be on its way
  audio.play();
}

function move(card, by) {
  const audios = [...card.querySelectorAll("audio")];
  const from = audios.find((audio) => !audio.paused) || audios[0];
  if (from) seek(card, from.currentTime + by);
}

function onKey(event) {
  const isTyping = event.target.matches("input, select");
  if (event.key === "Escape" && isTyping) return void event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping || event.target.matches("audio")) return;
  const card = current();
  if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "/") byId("search").focus();
  else if (card && "1234".includes(event.key)) playOrPause(card, Number(event.key) - 1);
  else if (card && (event.key === "ArrowLeft" || event.key === "ArrowRight")) move(card, event.key === "ArrowLeft" ? -2 : 2);
  else return;
  event.preventDefault();
}

function choices() {
  const scored = SCORES.filter(([name]) => cards.some(({ dialogue }) => isNumber(dialogue.scores[name])));
  for (const [name, , title] of scored) {
    for (const which of ["worst", "best"]) byId("sort").append(new Option(`${title}, ${which} first`, `${name}:${which}`));
  }
  byId("sort").append(new Option("name", "name"), new Option("duration, longest first", "duration"));
  const datasets = [...new Set(cards.map(({ dialogue }) => dialogue.dataset))].sort();
  byId("dataset").append(new Option("all", ""), ...datasets.map((name) => new Option(name, name)));
  byId("audible").checked = cards.some(({ dialogue }) => dialogue.audio);
}

showHeader();
showTiles();
showScores();
showAllMetrics();
showValidations();
showCharts();
choices();
for (const id of ["dataset", "sort", "audible"]) byId(id).addEventListener("change", arrange);
byId("search").addEventListener("input", arrange);
document.addEventListener("keydown", onKey);
arrange();
const first = document.querySelector("#dialogues details.card");
if (first) first.open = true;
