"use strict";
// One sound at a time. A button names its file and, of a longer recording, the stretch to play.
const player = new Audio();
let playing = null, end = Infinity;

function stop() {
  player.pause();
  if (playing) playing.classList.remove("playing");
  playing = null;
}

function watch() {
  if (!playing) return;
  if (player.currentTime >= end) stop();
  else requestAnimationFrame(watch);
}

function play(button) {
  const again = playing === button;
  stop();
  if (again) return;
  playing = button;
  button.classList.add("playing");
  const start = Number(button.dataset.start || 0);
  end = Number(button.dataset.end || Infinity);
  const begin = () => {
    if (playing !== button) return;
    const go = () => playing === button && player.play().then(watch, stop);
    if (player.currentTime === start) go();
    else { player.addEventListener("seeked", go, { once: true }); player.currentTime = start; }
  };
  const source = new URL(button.dataset.src, document.baseURI).href;
  if (player.src === source && player.readyState > 0) begin();
  else { player.src = source; player.addEventListener("loadedmetadata", begin, { once: true }); }
}

player.addEventListener("ended", stop);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-src]");
  if (button) play(button);
});
document.addEventListener("play", (event) => { // players that show themselves, one at a time too
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);

// The page of all codes: search, colours, sorting, and hearing what the pointer is on.
const search = document.querySelector("#search"), map = document.querySelector(".map");

function filter() {
  const words = search.value.trim().toLowerCase().split(/[\s,]+/).filter(Boolean);
  const fits = (item) => !words.length || words.some((word) =>
    /^\d+$/.test(word) ? item.dataset.code === word : item.dataset.phone.toLowerCase() === word);
  let n = 0;
  for (const row of document.querySelectorAll("tbody tr")) {
    row.hidden = !fits(row);
    n += !row.hidden;
  }
  for (const dot of map.querySelectorAll("a")) dot.classList.toggle("faint", !fits(dot));
  document.querySelector("#found").textContent = words.length ? `${n} found` : "";
}

function sort(button) {
  const head = button.closest("th"), body = document.querySelector("tbody");
  const at = [...head.parentNode.children].indexOf(head), down = head.dataset.down !== "yes";
  const key = (row) => row.children[at].dataset.key || row.children[at].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const one = key(a), other = key(b), difference = Number(one) - Number(other);
    return (Number.isNaN(difference) ? one.localeCompare(other) : -difference) * (down ? 1 : -1);
  });
  head.dataset.down = down ? "yes" : "no";
  body.append(...rows);
}

if (search) {
  const said = document.querySelector(".said"), hint = said.textContent;
  search.addEventListener("input", filter);
  for (const chip of document.querySelectorAll("button[data-find]"))
    chip.addEventListener("click", () => {
      search.value = search.value === chip.dataset.find ? "" : chip.dataset.find;
      filter();
    });
  for (const choice of document.querySelectorAll("input[name=colour]"))
    choice.addEventListener("change", () => map.classList.toggle("usage", choice.value === "usage"));
  for (const button of document.querySelectorAll("th button"))
    button.addEventListener("click", () => sort(button));
  const hear = document.querySelector("#hear");
  map.addEventListener("mouseover", (event) => {
    const dot = event.target.closest("a");
    said.textContent = dot ? dot.querySelector("title").textContent : hint;
    if (dot && hear.checked) { if (playing !== dot) play(dot); }
  });
  filter(); // what was searched for stays when one comes back to the page
}
