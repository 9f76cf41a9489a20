// The session reader: one clock over all chunks, the word at each time, captions and keys.
//
// The page's text is plain. Words become elements only in paragraphs near the screen, so that 100,000 of them
// cost nothing; their times are four numbers each (see reader.py), and the word at a time is a binary search.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("reader-data").textContent);
  const at = (id) => document.getElementById(id);
  const reader = at("reader"), player = at("player"), play = at("play"), position = at("position");
  const LOW = 50; // percent
  const HELD = 8; // words before the last one that may still last, if channels overlap

  // Words: typed arrays in the text's order, and their order by time.
  const texts = [...reader.querySelectorAll(".para p")];
  const count = data.words.reduce((sum, packed) => sum + packed.length / 4, 0);
  const starts = new Float64Array(count), ends = new Float64Array(count), owner = new Int32Array(count);
  const first = new Int32Array(texts.length + 1);
  let filled = 0, ordered = true;
  data.words.forEach((packed, paragraph) => {
    first[paragraph] = filled;
    let begin = 0;
    for (let i = 0; i < packed.length; i += 4, filled++) {
      begin += packed[i + 1];
      starts[filled] = begin / 1000;
      ends[filled] = (begin + packed[i + 2]) / 1000;
      owner[filled] = paragraph;
      ordered &&= !filled || starts[filled] >= starts[filled - 1];
    }
  });
  first[texts.length] = filled;
  const order = Int32Array.from(starts.keys());
  if (!ordered) order.sort((a, b) => starts[a] - starts[b]);

  // Index in `list` of the last entry whose start is at most `time`; -1 if there is none.
  function lastBefore(length, startOf, time) {
    let low = 0, high = length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (startOf(middle) <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  const placeAt = (time) => lastBefore(count, (i) => starts[order[i]], time);

  function wordAt(time) {
    const last = placeAt(time);
    for (let i = last; i >= Math.max(0, last - HELD); i--) if (time < ends[order[i]]) return order[i];
    return -1;
  }

  // Elements of words.
  const made = new Map();

  function makeWords(paragraph) {
    if (made.has(paragraph)) return made.get(paragraph);
    const text = texts[paragraph].textContent, packed = data.words[paragraph], spans = [];
    const parts = document.createDocumentFragment();
    let from = 0;
    for (let i = 0; i < packed.length; i += 4) {
      const piece = text.slice(from, (from += packed[i]));
      const span = document.createElement("span");
      span.className = "w";
      span.textContent = piece.trimEnd();
      span.dataset.word = first[paragraph] + i / 4;
      if (packed[i + 3] >= 0 && packed[i + 3] < LOW) {
        span.classList.add("low");
        span.title = `${packed[i + 3]} % probable`;
      }
      spans.push(span);
      parts.append(span, piece.slice(span.textContent.length));
    }
    parts.append(text.slice(from));
    texts[paragraph].replaceChildren(parts);
    made.set(paragraph, spans);
    return spans;
  }

  const numbers = new Map(texts.map((text, number) => [text, number]));
  const near = new IntersectionObserver(
    (seen) => {
      for (const each of seen) {
        if (!each.isIntersecting) continue;
        near.unobserve(each.target);
        makeWords(numbers.get(each.target));
      }
    },
    { rootMargin: "800px" },
  );
  for (const text of texts) near.observe(text);

  // What is shown for a time.
  let spoken = -1, shown = -1;

  function format(seconds) {
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  }

  function markParagraph(paragraph) {
    if (paragraph === shown) return;
    if (shown >= 0) texts[shown].closest(".para").classList.remove("now");
    shown = paragraph;
    texts[paragraph].closest(".para").classList.add("now");
  }

  function markWord(word) {
    if (word === spoken) return;
    if (spoken >= 0) {
      const before = makeWords(owner[spoken])[spoken - first[owner[spoken]]];
      before.classList.remove("now");
      before.removeAttribute("aria-current");
    }
    spoken = word;
    if (word < 0) return;
    const span = makeWords(owner[word])[word - first[owner[word]]];
    span.classList.add("now");
    span.setAttribute("aria-current", "true");
    markParagraph(owner[word]);
    if (!at("follow").checked) return;
    const box = span.getBoundingClientRect(), room = innerHeight - player.offsetHeight;
    if (box.top < 40 || box.bottom > room - 20) span.scrollIntoView({ block: "center" });
  }

  // Captions are the cues of the SubRip download, read when they are switched on first.
  let cues = [];

  async function readCues() {
    const { href } = document.querySelector(".downloads [download$='.srt']");
    const text = href.startsWith("data:")
      ? new TextDecoder().decode(Uint8Array.from(atob(href.split(",")[1]), (letter) => letter.charCodeAt(0)))
      : await (await fetch(href)).text();
    const seconds = (stamp) => stamp.replace(",", ".").split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
    cues = text.trim().split("\n\n").map((block) => {
      const [, times, ...lines] = block.split("\n"), [start, end] = (times || "0 --> 0").split(" --> ").map(seconds);
      return { start, end, text: lines.join("\n") };
    });
  }

  function showCaption(time) {
    const cue = cues[lastBefore(cues.length, (i) => cues[i].start, time)];
    at("caption").textContent = cue && time < cue.end ? cue.text : "";
  }

  function show(time) {
    markWord(wordAt(time));
    if (at("captions").checked) showCaption(time);
    at("now").textContent = format(time);
    position.value = time;
    position.setAttribute("aria-valuetext", format(time));
  }

  // The player: parts one after the other in two audio elements, of which one loads the next part.
  const whole = at("audio");
  const parts = (whole ? [[0, data.duration, "", true]] : data.parts).map(([offset, duration, name, placed], number) => ({
    offset, end: offset + duration, name,
    url: !placed || duration <= 0 ? "" : whole ? whole.src : data.url && data.url.replace("*", number),
    decoded: false,
  }));
  let active = whole || new Audio(), spare = new Audio();
  let current = -1, wanted = null, playing = false;
  if (whole) whole.removeAttribute("controls"), (whole.hidden = true);
  player.append(active, spare);

  const sourceOf = (part) => part.url + (part.decoded ? "?decoded=1" : "");
  const next = (number) => parts.findIndex((part, i) => i > number && part.url);
  const time = () => (wanted !== null ? wanted : current < 0 ? Number(position.value) : parts[current].offset + active.currentTime);

  function report(text) {
    at("problem").textContent = text;
  }

  // Makes a part the active one at a time of the session; the spare element may have loaded it already.
  function load(number, when) {
    const source = sourceOf(parts[number]);
    if (spare.dataset.source === source) [active, spare] = [spare, active];
    spare.pause();
    current = number;
    wanted = when;
    player.dataset.part = number;
    player.setAttribute("aria-busy", "true");
    if (active.dataset.source !== source) {
      active.dataset.source = source;
      if (active.src !== source) active.src = source;
      active.preload = "auto";
    }
    active.playbackRate = Number(at("speed").value);
    if (active.readyState >= 1) settle();
    else if (active !== whole) active.load();
  }

  // The active element knows its length now: goes to the wanted time. A browser that is wrong about the length
  // also seeks to wrong times (an MP3 of varying bitrate without an index): such a part is decoded.
  function settle() {
    const { offset, end, decoded } = parts[current];
    if (data.url && !decoded && !(Math.abs(active.duration - (end - offset)) < 1 + (end - offset) / 50)) return fail();
    if (wanted !== null) active.currentTime = Math.max(0, wanted - parts[current].offset);
    wanted = null;
    player.removeAttribute("aria-busy");
    if (playing) start();
  }

  function start() {
    active.play().catch((error) => {
      if (error.name === "AbortError") return;
      setPlaying(false);
    });
  }

  function setPlaying(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
  }

  // Part that has the audio of a time: the last one that has begun, or else the next one.
  function partAt(when) {
    for (let i = lastBefore(parts.length, (n) => parts[n].offset, when); i >= 0; i--)
      if (parts[i].url && when < parts[i].end) return [i, when];
    const after = parts.findIndex((part) => part.url && part.offset > when);
    return after < 0 ? [-1, when] : [after, parts[after].offset];
  }

  function seek(when) {
    const [number, reached] = partAt(Math.min(Math.max(0, when), data.duration));
    show(number < 0 ? Math.min(when, data.duration) : reached);
    if (number < 0) return;
    if (number === current && active.readyState >= 1 && wanted === null) active.currentTime = reached - parts[number].offset;
    else load(number, reached);
  }

  function toggle(on) {
    setPlaying(on);
    if (!on) active.pause();
    else if (current < 0 || time() >= data.duration - 0.05) seek(time() >= data.duration - 0.05 ? 0 : time());
    if (on && current < 0) setPlaying(false), report("No audio of this session can be played here.");
    else if (on && wanted === null) start();
    requestAnimationFrame(follow);
  }

  function goOn() {
    const number = next(current);
    if (number < 0) return setPlaying(false), show(time());
    load(number, Math.max(parts[number].offset, parts[current].end));
  }

  function prepareNext() {
    const number = next(current);
    if (number < 0 || parts[current].end - time() > 20) return;
    const source = sourceOf(parts[number]);
    if (spare.dataset.source === source) return;
    spare.dataset.source = source;
    spare.preload = "auto";
    spare.src = source;
  }

  async function explain() {
    player.removeAttribute("aria-busy");
    const source = sourceOf(parts[current]), name = parts[current].name;
    setPlaying(false);
    if (!data.url) return report(`This browser does not play ${name || "this audio"}.`);
    const answer = await fetch(source, { headers: { Range: "bytes=0-0" } }).catch(() => null);
    report(answer && !answer.ok ? await answer.text() : `The audio of ${name} cannot be played; try again.`);
  }

  function fail() {
    const part = parts[current];
    if (!data.url || part.decoded) return explain();
    part.decoded = true; // our own decoder plays more formats than browsers do
    active.dataset.source = "";
    load(current, time());
  }

  function follow() {
    if (wanted === null && current >= 0) show(time());
    if (playing) requestAnimationFrame(follow);
  }

  for (const element of [active, spare]) {
    const when = (event, act) => element.addEventListener(event, () => element === active && current >= 0 && act());
    when("loadedmetadata", settle);
    when("timeupdate", () => (wanted === null && show(time()), prepareNext()));
    when("seeked", () => wanted === null && show(time()));
    when("playing", () => report(""));
    when("ended", goOn);
    when("error", fail);
  }

  // Controls.
  play.addEventListener("click", () => toggle(!playing));
  position.addEventListener("input", () => seek(Number(position.value)));
  at("speed").addEventListener("change", () => (active.playbackRate = Number(at("speed").value)));
  at("captions").addEventListener("change", async (event) => {
    at("caption").hidden = !event.target.checked;
    if (!cues.length) await readCues().catch(() => report("The captions could not be read; try again."));
    showCaption(time());
  });
  reader.addEventListener("click", (event) => {
    const word = event.target.closest(".w");
    if (!word || String(getSelection())) return;
    seek(starts[word.dataset.word]);
    if (!playing) toggle(true);
  });
  at("files")?.addEventListener("change", (event) => {
    const files = [...event.target.files], lone = parts.length === 1 && files.length === 1;
    const unknown = files.filter((file) => {
      const part = lone ? parts[0] : parts.find((each) => each.name === file.name && each.end > each.offset);
      if (part) part.url = URL.createObjectURL(file);
      return !part;
    });
    report(unknown.length ? `Not a file of this session: ${unknown.map((file) => file.name).join(", ")}` : "");
    current = -1;
    seek(time());
  });

  function openLink() {
    const found = /^#t=([\d.]+)$/.exec(location.hash);
    if (found) seek(Number(found[1]));
    return Boolean(found);
  }
  addEventListener("hashchange", () => openLink() && !playing && toggle(true));

  // Keys, unless a control with the focus needs them.
  function stepWord(by) {
    const place = Math.min(count - 1, Math.max(0, placeAt(time() + 0.0005) + by));
    if (count) seek(starts[order[place]]);
  }
  function stepParagraph(by) {
    const to = Math.min(texts.length - 1, Math.max(0, (shown < 0 ? -Math.max(0, by) : shown) + by));
    if (count) seek(starts[first[to]]);
  }
  const KEYS = {
    " ": () => toggle(!playing), k: () => toggle(!playing), j: () => seek(time() - 10), l: () => seek(time() + 10),
    ",": () => stepWord(-1), ".": () => stepWord(1), "[": () => stepParagraph(-1), "]": () => stepParagraph(1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
    const used = event.target.closest("input:not([type=range], [type=checkbox]), select, textarea, [contenteditable]");
    if (used || (event.key === " " && event.target.closest("button, a, summary, input"))) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  player.hidden = !parts.some((part) => part.url) && !at("files");
  if (!openLink()) show(0);
})();
