// ---- one dialogue's card
// name, short title, title, unit, digits, +1 where more is better
const SCORES = [
  ["wer", "WER", "word errors", "%", 0, -1], ["bleu", "BLEU", "BLEU", "", 0, 1],
  ["answers", "answers", "answers right in its speech", "%", 0, 1],
  ["written_answers", "answers written", "answers right in its text", "%", 0, 1],
  ["latency", "latency", "latency", "s", 2, -1], ["missed", "missed", "missed turns", "", 0, -1],
  ["barge_ins", "barge-ins failed", "barge-ins failed", "", 0, -1], ["quality", "quality", "quality", "", 2, 1],
  ["similarity", "voice", "speaker similarity", "", 2, 1], ["tokens", "tokens right", "tokens right", "%", 0, 1],
  ["codes", "codes right", "codes right", "%", 0, 1],
];
const IN_SUMMARY = new Set(["wer", "answers", "latency", "quality"]);

function chips(dialogue, everything) {
  return SCORES.filter(([name]) => isNumber(dialogue.scores[name])).map(([name, short, , unit, digits]) => {
    const value = fixed(dialogue.scores[name], digits) + (unit && ` ${unit}`);
    const chip = el("span.chip", el("span.muted", short), " ", el("b", value));
    chip.dataset.score = name;
    if (everything || IN_SUMMARY.has(name)) chip.classList.add("main");
    return chip;
  });
}

// what the answer must contain, and whether it is heard there
function valueCell(turn) {
  if (turn.value === null) return ["–"];
  const value = words(el("span"), turn.value);
  if (turn.is_heard === null) return [value];
  return turn.is_heard ? [el("span", value, " ✓"), ".good"] : [el("span", value, " ✗"), ".bad"];
}

function turnsTable(dialogue) {
  if (!dialogue.scored_turns.length) return el("p.none", "No turn of this dialogue was scored.");
  const said = (text) => (text ? words(el("span"), text) : el("span.none", "nothing"));
  const kind = (value) => (value < 20 ? ".good" : value > 60 ? ".bad" : "");
  const hasCeiling = dialogue.scored_turns.some((turn) => turn.ceiling_asr !== null);
  const hasValue = dialogue.scored_turns.some((turn) => turn.value !== null);
  const titles = ["From", "Reference", "Model's text", "Heard in its speech", "WER", hasValue && "Must contain",
    hasCeiling && "Heard in the ceiling"]; // false: no such column
  const isNumeric = (i) => i === 0 || i === 4;
  const row = (tag, cells) => el("tr", ...cells.map(([content, mark = ""], i) => {
    if (!titles[i]) return null;
    const cell = el(`${tag}${isNumeric(i) ? ".num" : ""}${mark}`, content);
    cell.dataset.title = titles[i];
    return cell;
  }));
  const rows = dialogue.scored_turns.map((turn) => row("td", [
    [`${turn.start_s.toFixed(1)} s`], [said(turn.reference)], [said(turn.generated_text)], [said(turn.asr)],
    [isNumber(turn.wer) ? `${fixed(turn.wer, 0)} %` : "–", isNumber(turn.wer) ? kind(turn.wer) : ""],
    valueCell(turn),
    [said(turn.ceiling_asr)],
  ]));
  return el("div.scroll", el("table.turns", el("thead", row("th", titles.map((title) => [title]))), el("tbody", ...rows)));
}

async function fill(card, dialogue) {
  if (card.querySelector(".body")) return;
  const body = el("div.body", el("p.none", "Loading …"));
  card.append(body);
  const sound = dialogue.audio ? await readSound(dialogue.number) : null;
  if (!body.isConnected) return; // closed meanwhile
  const isHeard = sound && !sound.error;
  const { node, move } = timeline(dialogue, isHeard ? sound : null, (second) => seek(card, second));
  const reason = sound && sound.error ? `The audio of this dialogue can't be read: ${sound.error}`
    : "The audio of this dialogue was not kept (max_samples_per_dataset).";
  body.replaceChildren(el("div.chips", ...chips(dialogue, true)), node,
    isHeard ? players(sound, move) : el("p.none", reason), turnsTable(dialogue));
}

function makeCard(dialogue) {
  const card = el("details.card", el("summary",
    el("span.id", dialogue.cut_id), el("span.chips", ...chips(dialogue, false)),
    el("span.tag", dialogue.dataset), el("span.num.muted", `${dialogue.duration_s.toFixed(1)} s`)));
  card.addEventListener("toggle", () => {
    if (card.open) return void fill(card, dialogue);
    release(card);
    card.querySelector(".body")?.remove();
  });
  return card;
}
