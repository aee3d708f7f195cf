// Keys press what the page shows: every control names its own in data-key. Without this file everything works by hand.
const ARROWS = { ArrowLeft: "2", ArrowRight: "4" };
const STUCK_MS = 4000; // a navigation that took longer may have been stopped: the page must live on
const IDLE_MS = 60000; // without a sign of life for so long, nobody is at work
const form = document.querySelector("form.judge");
let sent = 0;

// What is sent twice is stored once; this only spares the second request.
document.addEventListener("submit", (event) => {
  if (Date.now() - sent < STUCK_MS) return event.preventDefault();
  sent = Date.now();
  tick();
  if (event.target === form) form.elements.active.value = (active / 1000).toFixed(1);
});
window.addEventListener("pageshow", () => { sent = 0; });

// Seconds at work: while the page is seen and somebody moves.
let active = 0, looked = Date.now(), moved = Date.now();
function tick() {
  const now = Date.now();
  if (!document.hidden && now - moved < IDLE_MS) active += now - looked;
  looked = now;
}
setInterval(tick, 250);
for (const sign of ["pointermove", "keydown", "scroll", "touchstart"]) addEventListener(sign, () => { moved = Date.now(); }, { passive: true, capture: true });

// The key's own letter on any keyboard: by place for digits, which some have on the shift level, and for other alphabets.
function nameOf(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (digit) return digit[1];
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  const letter = /^Key([A-Z])$/.exec(event.code);
  return letter && event.key.length === 1 ? letter[1].toLowerCase() : event.key;
}

function press(control) {
  control.click();
  if (control.matches("textarea")) control.focus();
  if (control.matches("summary")) control.parentElement.querySelector("textarea, input:not([type])")?.focus();
}

// Where several rows are to be filled, a number goes to the row in focus, else to the first that is empty.
function choose(key) {
  const rows = [...document.querySelectorAll("[data-group]")].filter((row) => row.querySelector("input[type=radio]"));
  const empty = (row) => !row.querySelector(":checked");
  const row = rows.find((each) => each.contains(document.activeElement)) || rows.find(empty);
  const input = row?.querySelector(`input[data-key="${CSS.escape(key)}"]`);
  if (!input) return false;
  input.click();
  (rows.find(empty)?.querySelector("input") || document.querySelector("button[data-key=Enter]"))?.focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, select, input:not([type=checkbox], [type=radio])");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const send = document.querySelector("button[data-key=Enter]");
    if (send) { event.preventDefault(); send.click(); } else if (typing) event.target.blur(); // the verdict is the next press
  } else if (typing && event.key === "Escape") {
    event.target.blur();
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat) {
    const key = (document.querySelector("form.comparison") && ARROWS[event.key]) || nameOf(event);
    if (event.target.matches("input[type=radio]") && ARROWS[event.key]) return; // moves within the row
    if (key === "m" && marked()) return event.preventDefault();
    if (/^\d$/.test(key) && choose(key)) return event.preventDefault();
    const control = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!control || key === "Enter") return;
    event.preventDefault();
    press(control);
  }
});

// A passage that is selected in an answer becomes the next mark.
function marked() {
  const selection = getSelection(), text = selection.toString().trim();
  const answer = selection.anchorNode && (selection.anchorNode.parentElement || selection.anchorNode).closest?.("[data-side]");
  if (!text || !answer || !answer.contains(selection.focusNode)) return false;
  const rows = [...document.querySelectorAll(".mark")];
  const row = rows.find((each) => !each.querySelector("[name=mark-text]").value) || another();
  row.querySelector("[name=mark-answer]").value = answer.dataset.side;
  row.querySelector("[name=mark-text]").value = text.slice(0, 2000);
  row.closest("details").open = true;
  row.querySelector("[name=mark-comment]").focus();
  keep();
  return true;
}
function another() {
  const rows = document.querySelectorAll(".mark"), row = rows[0].cloneNode(true);
  row.querySelectorAll("input:not([type=hidden])").forEach((input) => { input.value = ""; });
  rows[rows.length - 1].after(row);
  return row;
}
const more = document.querySelector("[data-more]");
if (more) { more.hidden = false; more.addEventListener("click", () => another().querySelector("[name=mark-text]").focus()); }

// What was typed or chosen outlives a reload and a lost session, in this browser, until it is sent.
const draft = form && `draft ${location.pathname} ${form.dataset.draft}`;
const kept = (element) => element.name && !["hidden", "submit", "button"].includes(element.type);
function keep() {
  const values = [...form.elements].filter(kept).map((each) => (each.type === "radio" ? each.checked : each.value));
  const rows = document.querySelectorAll(".mark").length;
  if (values.some((value) => value && value !== "0")) localStorage.setItem(draft, JSON.stringify({ rows, values, at: Date.now() }));
  else localStorage.removeItem(draft);
}
function restore() {
  const found = JSON.parse(localStorage.getItem(draft) || "null");
  if (!found) return;
  for (let row = 1; row < found.rows; row++) another();
  [...form.elements].filter(kept).forEach((each, number) => {
    if (each.type === "radio") each.checked = found.values[number]; else each.value = found.values[number] ?? "";
    const folded = each.closest("details[data-keep]");
    if (folded && each.value && !each.matches("select, [type=radio]")) folded.open = true;
  });
}
if (form) {
  try {
    restore();
    form.addEventListener("input", keep);
    const old = Date.now() - 30 * 86400000;
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith("draft ") && name !== draft && JSON.parse(localStorage.getItem(name)).at < old) localStorage.removeItem(name);
    }
  } catch { /* a browser that keeps nothing */ }
}

for (const folded of document.querySelectorAll("details[data-remember]")) {
  try {
    const name = `open ${folded.dataset.remember}`, known = localStorage.getItem(name);
    if (known !== null) folded.open = known === "1";
    folded.addEventListener("toggle", () => localStorage.setItem(name, folded.open ? "1" : "0"));
  } catch { /* likewise */ }
}
for (const link of document.querySelectorAll("[data-opens]")) {
  link.addEventListener("click", (event) => {
    const folded = document.getElementById(link.dataset.opens);
    event.preventDefault();
    folded.open = !folded.open;
    if (folded.open) folded.scrollIntoView({ block: "nearest" });
  });
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try { await navigator.clipboard.writeText(source.textContent); } catch { // not on plain HTTP in a network
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
  });
}
