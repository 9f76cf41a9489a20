// Records a WAV with a real browser's MediaRecorder, in pieces, as a web page does it.
//
//   npm install playwright-core && NODE_PATH=node_modules node record_in_browser.js say.wav 2000 out 'audio/webm;codecs=opus'
//
// What it wrote is committed under tests/data/recorder; nothing of this is needed to run the tests.
const { chromium } = require('playwright-core');
const fs = require('fs');

const [wav, slice, out, mime] = process.argv.slice(2);
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required'];

// Runs inside the page: plays the sound into a recorder, and returns its pieces in base 64.
async function record([wav, slice, mime]) {
  const context = new AudioContext({ sampleRate: 48000 });
  const bytes = Uint8Array.from(atob(wav), (letter) => letter.charCodeAt(0)).buffer;
  const source = new AudioBufferSourceNode(context, { buffer: await context.decodeAudioData(bytes) });
  const stream = context.createMediaStreamDestination();
  source.connect(stream);
  const recorder = new MediaRecorder(stream.stream, { mimeType: mime, audioBitsPerSecond: 32000 });
  const pieces = [];
  recorder.ondataavailable = (event) => event.data.size && pieces.push(event.data);
  const stopped = new Promise((done) => { recorder.onstop = done; });
  recorder.start(slice);
  source.start(context.currentTime + 0.3);
  await new Promise((done) => { source.onended = done; });
  await new Promise((done) => setTimeout(done, 500));
  recorder.stop();
  await stopped;
  const text = async (piece) => {
    const data = new Uint8Array(await piece.arrayBuffer());
    return btoa(data.reduce((all, byte) => all + String.fromCharCode(byte), ''));
  };
  return Promise.all(pieces.map(text));
}

(async () => {
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS });
  const page = await browser.newPage();
  const sound = fs.readFileSync(wav).toString('base64');
  const pieces = await page.evaluate(record, [sound, Number(slice), mime]);
  fs.mkdirSync(out, { recursive: true });
  const extension = mime.includes('mp4') ? 'mp4' : 'webm';
  pieces.forEach((piece, at) => {
    const name = `${out}/chunk-${String(at + 1).padStart(3, '0')}.${extension}`;
    fs.writeFileSync(name, Buffer.from(piece, 'base64'));
  });
  console.log(`Chromium ${browser.version()}: ${pieces.length} pieces`);
  await browser.close();
})();
