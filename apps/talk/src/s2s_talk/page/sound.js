// Microphone and loudspeaker, each with a context at the rate of the model's side of it.
const MICROPHONE_ERRORS = {
  NotAllowedError: "The browser wasn't allowed to use the microphone: allow it for this page and try again.",
  NotFoundError: "There is no microphone: plug one in and try again.",
  NotReadableError: "Another program holds the microphone: close that and try again.",
};

export async function openMicrophone(deviceId, cancelEcho) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give a page the microphone on https or localhost only: open this page as http://localhost.");
  }
  const device = deviceId ? { deviceId: { exact: deviceId } } : {};
  // without echo nothing is changed in what the microphone hears: a model may have learned from such audio alone
  const changes = { echoCancellation: cancelEcho, noiseSuppression: cancelEcho, autoGainControl: cancelEcho };
  const audio = { channelCount: 1, ...changes, ...device };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(MICROPHONE_ERRORS[error.name] ?? `The microphone can't be used: ${error.message}`);
  }
}

// calls onFrame with an Int16Array for each frame of the model's
export async function capture(stream, rate, samplesPerFrame, onFrame) {
  const { context, source } = contextOf(stream, rate);
  await context.audioWorklet.addModule("/page/capture.js");
  const node = new AudioWorkletNode(context, "capture", {
    numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit", processorOptions: { rate, samplesPerFrame },
  });
  node.port.onmessage = ({ data }) => onFrame(data);
  source.connect(node);
  await context.resume();
  return context;
}

function contextOf(stream, rate) {
  const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  try {
    return { context, source: context.createMediaStreamSource(stream) };
  } catch { // Firefox records at the microphone's own rate only; capture.js then resamples
    context.close();
    const own = new AudioContext({ latencyHint: "interactive" });
    return { context: own, source: own.createMediaStreamSource(stream) };
  }
}

// returns the context and a function that plays a frame of 16-bit integers
export async function playback(rate, onState) {
  const context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  await context.audioWorklet.addModule("/page/playback.js");
  const node = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
  node.port.onmessage = ({ data }) => onState(data);
  node.connect(context.destination);
  await context.resume();
  const play = (buffer) => {
    const frame = Float32Array.from(new Int16Array(buffer), (sample) => sample / 32768);
    node.port.postMessage(frame, [frame.buffer]);
  };
  return { context, play };
}

export async function listMicrophones(select) {
  const chosen = select.value;
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "audioinput");
  select.length = 1;
  devices.forEach(({ deviceId, label }, i) => select.add(new Option(label || `microphone ${i + 1}`, deviceId)));
  if (devices.some(({ deviceId }) => deviceId === chosen)) select.value = chosen;
}
