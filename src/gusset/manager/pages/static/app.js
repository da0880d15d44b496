// Enhancements for the pages. All pages work without JavaScript.
"use strict";
(() => {
  const MAX_BYTES = 65536;
  const IDLE = 15 * 60 * 1000;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- show the controls that need JavaScript, hide their replacements
  function enhance(within) {
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
    } catch { // no clipboard API without HTTPS: fall back to selecting the text
      getSelection().selectAllChildren(source);
      label.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { label.textContent = "Copy"; }, 1800);
  }

  // --- the input for a value
  function show(button) {
    const field = document.getElementById(button.dataset.show);
    const visible = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(visible));
    button.textContent = visible ? "Hide" : "Show";
    if (field.tagName === "TEXTAREA") field.classList.toggle("masked", !visible);
    else field.type = visible ? "text" : "password";
  }

  // A one-line input drops line ends on paste: replace it by a textarea for text with several lines.
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

  // Clear values when leaving a page, so that neither Back nor a duplicated tab shows them.
  function clearValues() {
    all("[data-value-form]").forEach((form) => {
      all("[name=value], [name=file]", form).forEach((field) => { field.value = ""; });
    });
    all("[data-show-once]").forEach((part) => part.remove());
  }

  // --- update relative times while a page stays open
  const UNITS = [[31536000, "year"], [2592000, "month"], [86400, "day"], [3600, "hour"], [60, "minute"]];
  function ago(time) {
    const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
    const size = Math.abs(seconds);
    if (size < 60) return seconds >= 0 ? "just now" : "in a moment";
    const [length, unit] = UNITS.find(([least]) => size >= least);
    const count = Math.floor(size / length);
    if (count === 1 && unit === "day") return seconds > 0 ? "yesterday" : "tomorrow";
    const text = `${count} ${unit}${count === 1 ? "" : "s"}`;
    return seconds > 0 ? `${text} ago` : `in ${text}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-show]");
    if (button?.dataset.copy) copy(button);
    else if (button) show(button);
  });
  document.addEventListener("change", (event) => {
    if (event.target.type === "file") {
      const large = event.target.files[0]?.size > MAX_BYTES;
      event.target.setCustomValidity(large ? "A secret can have at most 65,536 bytes; this file is larger." : "");
    }
    event.target.closest("form[data-autosubmit]")?.requestSubmit();
  });
  document.addEventListener("paste", widen);
  addEventListener("pagehide", clearValues);
  // Pause polling while the tab is hidden, the person is idle, or an element in the polled part has the focus.
  let lastActive = Date.now();
  for (const type of ["pointermove", "keydown", "scroll", "focus"]) {
    addEventListener(type, () => { lastActive = Date.now(); }, { passive: true });
  }
  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.detail.elt;
    const repeats = part.getAttribute("hx-trigger")?.startsWith("every");
    const idle = document.hidden || Date.now() - lastActive > IDLE; // lets an unattended session expire
    if (repeats && (idle || part.contains(document.activeElement))) event.preventDefault();
  });
  document.addEventListener("htmx:load", (event) => enhance(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => {
    enhance(document);
    // A page that shows something once is the response to a form: a reload must not submit the form again.
    if (document.querySelector("[data-show-once]")) history.replaceState(null, "", location.href);
    const current = document.querySelector(".nav [aria-current]"); // on a phone the navigation scrolls sideways
    current?.closest(".nav").scrollTo({ left: current.offsetLeft - 80 });
  });
  setInterval(() => all("time[datetime]").forEach((time) => { time.textContent = ago(time); }), 30000);
})();
