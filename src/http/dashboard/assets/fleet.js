// Fills what the server sends every second into the page that it has drawn; without this the page is whole and still.
"use strict";
(() => {
  // What a field of the data does to an element that names it: data-text="pid" and so on.
  const ways = {
    text: (el, value) => { if (el.textContent !== value) el.textContent = value; },
    tone: (el, value) => { el.dataset.is = value; },
    value: (el, value) => { if (String(el.value) !== String(value)) el.value = value; },
    width: (el, value) => el.setAttribute("width", value),
    path: (el, value) => el.setAttribute("d", value),
    show: (el, value) => { el.toggleAttribute("hidden", value.length === 0); },
    time: (el, value) => { el.dateTime = value; },
  };
  const names = Object.keys(ways);

  function fill(el, data) {
    for (const name of names) {
      const field = el.dataset[name];
      if (field !== undefined && field in data) ways[name](el, data[field]);
    }
    const rows = data[el.dataset.list];
    if (rows !== undefined) arrange(el, rows);
    else if (el.dataset.list === undefined) for (const child of el.children) fill(child, data);
  }

  // Rows keep their elements, and with them the focus, for as long as their key is there.
  function arrange(list, rows) {
    const known = new Map([...list.children].map((row) => [row.dataset.key, row]));
    const wanted = new Set(rows.map((row) => row.key));
    for (const [key, row] of known) if (!wanted.has(key)) row.remove();
    let next = list.firstElementChild;
    for (const data of rows) {
      const row = known.get(data.key) ?? made(list.dataset.list);
      row.dataset.key = data.key;
      fill(row, data);
      if (row === next) next = next.nextElementSibling;
      else list.insertBefore(row, next);
    }
  }

  function made(name) {
    const copy = document.getElementById("row-" + name).content.cloneNode(true);
    return copy.querySelector("[data-key]");
  }

  const link = document.getElementById("link");
  const still = link.innerHTML;
  function tell(state) {
    if (document.documentElement.dataset.link === state) return;
    document.documentElement.dataset.link = state;
    if (state === "live") link.textContent = "live";
    else link.innerHTML = "connecting again · " + still;
  }

  let source = null, watchdog = 0;
  // A connection whose other end has vanished says nothing for ever; a frame is due each second.
  function expect() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => { tell("lost"); look(); }, 10000);
  }
  function open() {
    expect();
    source = new EventSource("/fleet/events");
    source.onmessage = (event) => {
      fill(document.body, JSON.parse(event.data));
      tell("live");
      expect();
    };
    source.onerror = () => {
      tell("lost");
      // The browser comes again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) setTimeout(look, 5000);
    };
  }
  // Nobody looks at a hidden page, so nothing need be computed for it.
  function look() {
    clearTimeout(watchdog);
    if (source !== null) source.close();
    source = null;
    if (!document.hidden) open();
  }
  document.addEventListener("visibilitychange", look);
  look();

  // A verdict may take some seconds: the button says that it was pressed, and cannot be again.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button === null) return;
    if (button.getAttribute("aria-busy") === "true") event.preventDefault();
    button.setAttribute("aria-busy", "true");
  });
  // A page that the browser kept shows its buttons as they were.
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  });
})();
