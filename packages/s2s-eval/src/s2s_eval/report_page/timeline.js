// ---- one timeline: user, reference and generated agent, and how turns are taken
const TRACKS = [["user", "User"], ["reference", "Reference"], ["generated", "Generated"]];
const MIN_PIXELS_PER_S = 24;

function waveform(peaks, loudest) {
  const heights = [...peaks].map((peak) => Math.max(0.7, (48 * peak) / loudest));
  const upper = heights.map((height, i) => `${i ? "L" : "M"}${i} ${(50 - height).toFixed(1)}`);
  const lower = heights.map((height, i) => `L${i} ${(50 + height).toFixed(1)}`).reverse();
  const box = { viewBox: `0 0 ${Math.max(1, peaks.length - 1)} 100`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return svg("svg", box, svg("path", { d: `${upper.join("")}${lower.join("")}Z`, fill: "currentColor" }));
}

// a block from one second to another
function place(node, start, end, duration) {
  node.style.left = `${(100 * start) / duration}%`;
  node.style.width = `${(100 * Math.max(0, end - start)) / duration}%`;
  return node;
}

function lane(dialogue, track, peaks, duration) {
  const node = el(`div.lane.${track}`);
  if (peaks) node.append(waveform(peaks[track], Math.max(1, ...Object.values(peaks).map((one) => Math.max(...one)))));
  if (track === "generated") {
    for (const [start, end] of dialogue.generated_speech) {
      const segment = place(el("div.segment"), start, end, duration);
      segment.title = `audible ${start.toFixed(2)}–${end.toFixed(2)} s`;
      node.append(segment);
    }
  }
  const turns = track === "generated" ? dialogue.generated_turns
    : dialogue.turns.filter((turn) => turn.role === (track === "user" ? "user" : "agent"));
  for (const turn of turns) {
    const block = place(words(el("div.turn"), turn.text || "…"), turn.start_s, Math.max(turn.end_s, turn.start_s + 0.08), duration);
    block.title = `${turn.start_s.toFixed(2)}–${turn.end_s.toFixed(2)} s: ${turn.text}`;
    node.append(block);
  }
  return node;
}

function event(kind, start, end, label, title, duration) {
  const node = place(el(`div.event.${kind}`, el("span", label)), start, end, duration);
  if (start > 0.8 * duration) node.classList.add("leftward");
  node.title = title;
  return node;
}

function responseEvents(dialogue, duration) {
  return dialogue.responses.map(({ user_end_s: end, latency_s: latency }) => {
    const at = `after the user's turn that ends at ${end.toFixed(2)} s`;
    if (!isNumber(latency)) return event("bad", end, end, "missed", `no answer ${at}`, duration);
    const [from, to] = latency < 0 ? [end + latency, end] : [end, end + latency];
    return event("latency", from, to, `${fixed(latency, 2)} s`, `answers ${fixed(latency, 2)} s ${at}`, duration);
  });
}

function bargeInEvents(dialogue, duration) {
  return dialogue.barge_ins.map(({ start_s: start, stop_s: stop, kind, success }) => {
    const after = isNumber(stop) ? `${(stop - start).toFixed(1)} s` : "";
    const stops = after ? `stops after ${after}` : "doesn't stop";
    const label = kind === "yield" ? (success ? `yields in ${after}` : stops) : success ? "goes on, rightly" : "false stop";
    const wanted = kind === "yield" ? "it should stop" : "it should go on";
    const title = `the user speaks at ${start.toFixed(2)} s while the agent does: ${wanted}; it ${stops}`;
    return event(success ? "good" : "bad", start, stop ?? duration, label, title, duration);
  });
}

function axis(duration) {
  const step = [0.5, 1, 2, 5, 10, 20, 30, 60].find((candidate) => duration / candidate <= 12) || 120;
  const node = el("div.axis");
  for (let second = 0; second < duration - step / 2; second += step) {
    node.append(place(el("span", String(second)), second, second, duration));
  }
  node.append(place(el("span", `${duration.toFixed(1)} s`), duration, duration, duration));
  return node;
}

// returns the element and what moves its playhead
function timeline(dialogue, sound, onSeek) {
  const duration = (sound && sound.duration_s) || dialogue.duration_s;
  const peaks = sound && sound.peaks && Object.fromEntries(TRACKS.map(([track]) => [track, bytes(sound.peaks[track])]));
  const rows = TRACKS.map(([track, title]) => [el(`div.name.${track}`, title), lane(dialogue, track, peaks, duration)]);
  const events = [["Answers", responseEvents(dialogue, duration)], ["Barge-ins", bargeInEvents(dialogue, duration)]];
  for (const [title, marks] of events) if (marks.length) rows.push([el("div.name.thin", title), el("div.lane.thin", ...marks)]);
  const playhead = el("div.playhead");
  const tracks = el("div.tracks", ...rows.map(([, content]) => content), axis(duration), playhead);
  tracks.style.minWidth = `${Math.min(duration * MIN_PIXELS_PER_S, 20000)}px`;
  tracks.tabIndex = 0;
  tracks.setAttribute("role", "slider");
  tracks.setAttribute("aria-label", "position");
  tracks.setAttribute("aria-valuemin", "0");
  tracks.setAttribute("aria-valuemax", duration.toFixed(1));
  const window = el("div.window", tracks);
  const move = (second, isPlaying) => {
    const share = Math.min(1, second / duration);
    playhead.style.left = `${100 * share}%`;
    tracks.setAttribute("aria-valuenow", second.toFixed(1));
    const x = share * tracks.clientWidth; // a timeline wider than its window follows what is played
    if (isPlaying && (x < window.scrollLeft || x > window.scrollLeft + window.clientWidth)) window.scrollLeft = x - 20;
  };
  tracks.addEventListener("click", (click) => {
    const box = tracks.getBoundingClientRect();
    const second = ((click.clientX - box.left) / box.width) * duration;
    move(second, false);
    onSeek(second);
  });
  move(0, false);
  return { node: el("div.timeline", el("div.names", ...rows.map(([name]) => name)), window), move };
}
