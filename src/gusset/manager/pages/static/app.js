// What the pages do beyond what a browser does by itself. All of them work without this file.
"use strict";
(() => {
  const MOST_BYTES = 65536;
  const IDLE = 15 * 60 * 1000;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- what needs a script appears, what stands in for it goes
  function begin(within) {
    all("[data-copy], [data-show]", within).forEach((button) => { button.hidden = false; });
    all("[data-without-script]", within).forEach((part) => { part.hidden = true; });
  }

  // --- copy
  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    const label = button.firstChild;
    try {
      await navigator.clipboard.writeText(source.textContent);
      label.textContent = "Copied";
    } catch { // off HTTPS there is no clipboard for pages: select it, and the person's own keys copy it
      getSelection().selectAllChildren(source);
      label.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { label.textContent = "Copy"; }, 1800);
  }

  // --- the field for a value
  function show(button) {
    const field = document.getElementById(button.dataset.show);
    const visible = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(visible));
    button.textContent = visible ? "Hide" : "Show";
    if (field.tagName === "TEXTAREA") field.classList.toggle("masked", !visible);
    else field.type = visible ? "text" : "password";
  }

  // A one-line field drops line ends on paste, so text with line ends gets a field with lines.
  function widen(event) {
    const field = event.target;
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (!field.closest?.("[data-peek]") || field.tagName !== "INPUT" || !/[\r\n]/.test(text)) return;
    event.preventDefault();
    const lines = document.createElement("textarea");
    for (const name of ["id", "name", "autocomplete", "autocapitalize", "autocorrect", "spellcheck", "aria-describedby", "aria-invalid"]) {
      if (field.hasAttribute(name)) lines.setAttribute(name, field.getAttribute(name));
    }
    lines.className = field.type === "password" ? "mono masked" : "mono";
    lines.value = field.value.slice(0, field.selectionStart) + text + field.value.slice(field.selectionEnd);
    field.replaceWith(lines);
    lines.focus();
  }

  // A page that is left keeps no value: not for the way back, not in a copy of the tab.
  function forget() {
    all("[data-value-form]").forEach((form) => {
      all("[name=value], [name=file]", form).forEach((field) => { field.value = ""; });
    });
    all("[data-fresh]").forEach((part) => part.remove());
  }

  // --- times go on while a page stays open
  const UNITS = [[31536000, "year"], [2592000, "month"], [86400, "day"], [3600, "hour"], [60, "minute"]];
  function ago(time) {
    const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
    const size = Math.abs(seconds);
    if (size < 60) return seconds >= 0 ? "just now" : "in a moment";
    const [length, unit] = UNITS.find(([least]) => size >= least);
    const count = Math.floor(size / length);
    if (count === 1 && unit === "day") return seconds > 0 ? "yesterday" : "tomorrow";
    const spoken = `${count} ${unit}${count === 1 ? "" : "s"}`;
    return seconds > 0 ? `${spoken} ago` : `in ${spoken}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-show]");
    if (button?.dataset.copy) copy(button);
    else if (button) show(button);
  });
  document.addEventListener("change", (event) => {
    if (event.target.type === "file") {
      const large = event.target.files[0]?.size > MOST_BYTES;
      event.target.setCustomValidity(large ? "A secret has at most 65,536 bytes; this file has more." : "");
    }
    event.target.closest("form[data-autosubmit]")?.requestSubmit();
  });
  document.addEventListener("paste", widen);
  addEventListener("pagehide", forget);
  // What is asked for over and over waits while nobody looks or moves, or while something in it is in use.
  let moved = Date.now();
  for (const sign of ["pointermove", "keydown", "scroll", "focus"]) {
    addEventListener(sign, () => { moved = Date.now(); }, { passive: true });
  }
  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.detail.elt;
    const repeats = part.getAttribute("hx-trigger")?.startsWith("every");
    const idle = document.hidden || Date.now() - moved > IDLE; // so that a session can end by itself
    if (repeats && (idle || part.contains(document.activeElement))) event.preventDefault();
  });
  document.addEventListener("htmx:load", (event) => begin(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => {
    begin(document);
    // What is shown once came as the answer to a form: to reload is to look again, not to send it again.
    if (document.querySelector("[data-fresh]")) history.replaceState(null, "", location.href);
    const here = document.querySelector(".nav [aria-current]"); // on a phone the row of places scrolls
    here?.closest(".nav").scrollTo({ left: here.offsetLeft - 80 });
  });
  setInterval(() => all("time[datetime]").forEach((time) => { time.textContent = ago(time); }), 30000);
})();
