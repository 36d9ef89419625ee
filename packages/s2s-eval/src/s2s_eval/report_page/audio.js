// ---- a dialogue's audio: an element of its own behind this script, read when its card opens
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function readSound(number) {
  // the list works before the whole page is there; what follows an element shows that it is complete
  let node;
  while (!(node = byId(`audio-${number}`))?.nextSibling && document.readyState === "loading") await pause(30);
  return node ? JSON.parse(node.textContent) : null;
}

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// user left, generated right, from the two tracks that are there already
async function stereoUrl(sound) {
  const context = new OfflineAudioContext(1, 1, sound.rate); // needs no gesture, as an AudioContext would
  const [left, right] = await Promise.all(["user", "generated"].map(async (track) =>
    (await context.decodeAudioData(bytes(sound.tracks[track]).buffer)).getChannelData(0)));
  return URL.createObjectURL(stereoWav(left, right, sound.rate));
}

function stereoWav(left, right, rate) {
  const length = Math.max(left.length, right.length);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  header.setUint32(4, 36 + 4 * length, true), header.setUint32(40, 4 * length, true);
  header.setUint32(16, 16, true), header.setUint16(20, 1, true), header.setUint16(22, 2, true);
  header.setUint32(24, rate, true), header.setUint32(28, 4 * rate, true);
  header.setUint16(32, 4, true), header.setUint16(34, 16, true);
  const samples = new Int16Array(2 * length);
  [left, right].forEach((channel, offset) => {
    for (let i = 0; i < channel.length; i++) samples[2 * i + offset] = 32767 * Math.max(-1, Math.min(1, channel[i]));
  });
  return new Blob([header, samples], { type: "audio/wav" });
}

const PLAYERS = [
  ["user", "1", "User"], ["reference", "2", "Reference agent"], ["generated", "3", "Generated agent"],
  ["both", "4", "Both: user left, generated right"],
];

function pauseOthers(audio) {
  for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
}

function player(track, key, title, onMove) {
  const audio = el("audio");
  audio.controls = true;
  audio.preload = "metadata";
  audio.dataset.track = track;
  audio.setAttribute("aria-label", title);
  const follow = () => {
    onMove(audio.currentTime, !audio.paused);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    if (audio.paused) return; // another was asked for since
    pauseOthers(audio);
    follow();
  });
  audio.addEventListener("seeked", follow);
  return el("div", el(`div.title.${track}`, el("kbd", key), ` ${title}`), audio);
}

function players(sound, onMove) {
  const boxes = PLAYERS.map(([track, key, title]) => player(track, key, title, onMove));
  const audios = boxes.map((box) => box.querySelector("audio"));
  TRACKS.forEach(([track], i) => (audios[i].src = `data:audio/mpeg;base64,${sound.tracks[track]}`));
  const both = audios[TRACKS.length];
  stereoUrl(sound).then(
    (url) => (both.isConnected ? (both.src = url) : URL.revokeObjectURL(url)),
    (error) => both.replaceWith(el("p.none", `This browser can't mix them: ${error.message}`)));
  return el("div.players", ...boxes);
}

// 500 dialogues' audio at once would be too much
function release(card) {
  for (const audio of card.querySelectorAll("audio")) {
    const address = audio.src;
    audio.pause();
    audio.removeAttribute("src");
    audio.load(); // nothing asks for what is gone
    if (address.startsWith("blob:")) URL.revokeObjectURL(address);
  }
}

function seek(card, second) {
  for (const audio of card.querySelectorAll("audio")) {
    if (audio.readyState) audio.currentTime = Math.max(0, Math.min(second, audio.duration - 0.01));
  }
}
