// A conversation: microphone → WebSocket → loudspeaker, transcripts, timeline. The protocol is told in README.md.
import { byId, hideMessages, showError, showNotice } from "./elements.js";
import { capture, listMicrophones, openMicrophone, playback } from "./sound.js";
import { addFrame, clearTimeline, share } from "./timeline.js";

const VERSION = 1;
const MOST_UNSENT = 200000; // bytes, 5 s of audio: what isn't sent by then comes too late to be of use
let talk = null; // the conversation, while there is one

function setState(text, button) {
  byId("state").textContent = text;
  byId("connect").textContent = button;
}

async function start() {
  hideMessages();
  clearTimeline();
  byId("agent-text").replaceChildren();
  byId("user-text").replaceChildren();
  const own = (talk = { contexts: [], lost: { late: 0, skipped: 0 }, playback: { waiting_ms: 0, gaps: 0, cuts: 0 } });
  setState("asking for the microphone", "Stop");
  try {
    own.stream = await openMicrophone(byId("device").value, byId("echo").checked);
    if (talk !== own) return release(own);
    void listMicrophones(byId("device"));
    own.stream.getAudioTracks()[0].onended = () => end(own, "The microphone is gone", "Plug it in and start again.");
    connect(own);
  } catch (error) {
    end(own, "No microphone", error.message);
  }
}

function connect(own) {
  setState("connecting", "Stop");
  const socket = (own.socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/talk`));
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? onMessage(own, JSON.parse(data)) : own.play?.(data));
  socket.onclose = ({ code, reason }) => {
    const title = code === 1001 ? "The server was stopped" : "The conversation ended";
    const text = reason || "The server can't be reached: is it still running? Start it and try again.";
    end(own, ...(code === 1000 ? [] : [title, own.error ?? text]));
  };
}

async function open(own, hello) {
  if (hello.version !== VERSION) {
    return end(own, "Another version", `The server speaks version ${hello.version}, this page ${VERSION}: reload the page.`);
  }
  own.hello = hello;
  byId("user-text").classList.toggle("none", !hello.writes_user_text);
  if (!hello.writes_user_text) byId("user-text").textContent = "This model doesn't write what you say.";
  try {
    const voice = await playback(hello.target_sample_rate_hz, (state) => (own.playback = state));
    own.contexts.push(voice.context);
    own.play = voice.play;
    const sendFrame = (frame) => send(own, frame);
    own.contexts.push(await capture(own.stream, hello.source_sample_rate_hz, hello.source_samples_per_frame, sendFrame));
  } catch (error) {
    return end(own, "This browser can't record or play", error.message);
  }
  if (talk === own) setState("talking", "Stop");
  else release(own);
}

function send(own, frame) {
  showLevel(frame);
  if (own.socket.readyState !== WebSocket.OPEN) return;
  if (own.socket.bufferedAmount > MOST_UNSENT) {
    return end(own, "The connection is too slow", "What you said couldn't be sent in time. Start again.");
  }
  own.socket.send(frame);
}

function showLevel(frame) {
  const power = frame.reduce((sum, sample) => sum + sample * sample, 0) / frame.length;
  const level_db = 10 * Math.log10(power / 32768 ** 2 + 1e-9);
  byId("level").firstElementChild.style.width = `${100 * share(level_db)}%`;
  byId("level").setAttribute("aria-valuenow", Math.round(Math.max(-60, Math.min(0, level_db))));
}

function onMessage(own, message) {
  if (message.type === "hello") void open(own, message);
  else if (message.type === "frame") onFrame(own, message);
  else if (message.type === "notice") showNotice(message.text);
  else if (message.type === "error") own.error = message.text; // the socket closes next
}

function write(id, text) {
  if (!text) return;
  const node = byId(id);
  node.append(text);
  node.scrollTop = node.scrollHeight;
}

function onFrame(own, frame) {
  addFrame(frame);
  if (frame.token.kind === "bos" && byId("agent-text").childNodes.length) write("agent-text", "\n");
  write("agent-text", frame.text);
  if (own.hello.writes_user_text) write("user-text", frame.user_text);
  own.lost.late += frame.heard ? 0 : 1;
  own.lost.skipped += frame.skipped;
  showNumbers(own, frame);
}

// from the first sample of a frame to the loudspeaker, as far as the page can know: what the browser and the sound card
// add isn't in it
function showNumbers(own, frame) {
  const { latency_s, max_duration_s, frame_length_s } = own.hello;
  if (frame.waited_ms !== null) {
    byId("delay").textContent = `${Math.round(1000 * latency_s + frame.waited_ms + own.playback.waiting_ms)} ms`;
  }
  byId("load").textContent = `${Math.round(frame.tick_ms)} ms`;
  byId("load").classList.toggle("bad", frame.tick_ms > 1000 * frame_length_s);
  const left = Math.max(0, Math.round(max_duration_s - (frame.index + 1) * frame_length_s));
  byId("left").textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  byId("lost").textContent = `${own.lost.late}, ${own.lost.skipped}`;
  byId("gaps").textContent = `${own.playback.gaps}, ${own.playback.cuts}`;
}

function release(own) {
  own.stream?.getTracks().forEach((track) => track.stop());
  own.contexts.forEach((context) => void context.close());
  own.contexts = [];
  if (own.socket) {
    own.socket.onclose = own.socket.onmessage = null;
    own.socket.close();
  }
}

function end(own, title, text) {
  if (talk !== own) return;
  talk = null;
  release(own);
  setState("not connected", "Start talking");
  if (title) showError(`${title}.`, text);
}

function stop(own) {
  if (own.socket?.readyState === WebSocket.OPEN) own.socket.send('{"type": "stop"}');
  end(own);
}

byId("connect").addEventListener("click", () => (talk ? stop(talk) : void start()));
