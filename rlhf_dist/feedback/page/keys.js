// Keys press what the page shows: every control names its own in data-key. Without this file everything works by hand.
const ARROWS = { ArrowLeft: "2", ArrowRight: "4" };
let sent = false;

document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault(); // a second press while the first is under way
  sent = true;
});

window.addEventListener("pageshow", () => { sent = false; });

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input:not([type=checkbox])");
  if (typing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    document.querySelector("[data-key=Enter]")?.click();
  } else if (typing && event.key === "Escape") {
    event.target.blur();
  } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && !event.repeat) {
    const arrow = document.querySelector(".comparison") && ARROWS[event.key];
    const control = document.querySelector(`[data-key="${CSS.escape(arrow || event.key)}"]`);
    if (!control || event.key === "Enter") return;
    event.preventDefault();
    control.click();
    if (control.matches("summary")) document.getElementById("comment").focus();
  }
});
