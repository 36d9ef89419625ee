// One column a frame: what was heard of the user, the agent's text token, the agent's speech.
import { byId, el } from "./elements.js";

const MOST_FRAMES = 375; // half a minute
const FRAMES_PER_SECOND = 12.5;
const [QUIETEST_DB, LOUDEST_DB] = [-60, -10];

export const share = (level_db) => Math.max(0, Math.min(1, (level_db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB)));

function bar(spec, level_db) {
  const inner = el("i");
  inner.style.height = `${Math.round(100 * share(level_db))}%`;
  return el(spec, inner);
}

function column(frame) {
  const marks = `${frame.heard ? "" : ".late"}${frame.skipped ? ".skipped" : ""}`;
  const user = bar(`span.user${marks}`, frame.user_level_db);
  const token = el(`span.token.${frame.token.kind}`, frame.token.kind === "text" ? frame.token.text : "");
  const speech = frame.speech === "sound" ? bar("span.speech", frame.agent_level_db) : el(`span.speech.${frame.speech}`);
  const isSecond = Math.floor(frame.index / FRAMES_PER_SECOND) !== Math.floor((frame.index - 1) / FRAMES_PER_SECOND);
  const node = el(isSecond ? "div.frame.second" : "div.frame", user, token, speech);
  node.title = `frame ${frame.index}, ${(frame.index / FRAMES_PER_SECOND).toFixed(2)} s: `
    + `you ${frame.heard ? `${frame.user_level_db} dB` : "late"}${frame.skipped ? `, ${frame.skipped} skipped` : ""}; `
    + `text ${frame.token.kind} ${frame.token.text}; speech ${frame.speech} ${frame.agent_level_db} dB`;
  return node;
}

export function clearTimeline() {
  byId("frames").replaceChildren();
}

export function addFrame(frame) {
  const frames = byId("frames");
  const isAtEnd = frames.scrollLeft + frames.clientWidth >= frames.scrollWidth - 20; // else somebody looks back
  frames.append(column(frame));
  if (frames.childElementCount > MOST_FRAMES) frames.firstElementChild.remove();
  if (isAtEnd) frames.scrollLeft = frames.scrollWidth;
}
