// Fills the updates of every second into the page; without this script the page is complete and does not change.
"use strict";
(() => {
  // How a field of the data changes an element that names it: data-text="pid" and so on.
  const setters = {
    text: (el, value) => { if (el.textContent !== value) el.textContent = value; },
    tone: (el, value) => { el.dataset.is = value; },
    value: (el, value) => { if (String(el.value) !== String(value)) el.value = value; },
    width: (el, value) => el.setAttribute("width", value),
    path: (el, value) => el.setAttribute("d", value),
    show: (el, value) => { el.toggleAttribute("hidden", value.length === 0); },
    time: (el, value) => { el.dateTime = value; },
  };
  const names = Object.keys(setters);

  function fill(el, data) {
    for (const name of names) {
      const field = el.dataset[name];
      if (field !== undefined && field in data) setters[name](el, data[field]);
    }
    const rows = data[el.dataset.list];
    if (rows !== undefined) arrange(el, rows);
    else if (el.dataset.list === undefined) for (const child of el.children) fill(child, data);
  }

  // A row keeps its element, and with it the focus, as long as its key is in the data.
  function arrange(list, rows) {
    const known = new Map([...list.children].map((row) => [row.dataset.key, row]));
    const present = new Set(rows.map((row) => row.key));
    for (const [key, row] of known) if (!present.has(key)) row.remove();
    let next = list.firstElementChild;
    for (const data of rows) {
      const row = known.get(data.key) ?? newRow(list.dataset.list);
      row.dataset.key = data.key;
      fill(row, data);
      if (row === next) next = next.nextElementSibling;
      else list.insertBefore(row, next);
    }
  }

  function newRow(name) {
    const copy = document.getElementById("row-" + name).content.cloneNode(true);
    return copy.querySelector("[data-key]");
  }

  const link = document.getElementById("link");
  const reloadLink = link.innerHTML;
  function showLink(state) {
    if (document.documentElement.dataset.link === state) return;
    document.documentElement.dataset.link = state;
    if (state === "live") link.textContent = "live";
    else link.innerHTML = "reconnecting · " + reloadLink;
  }

  let source = null, watchdog = 0;
  // A connection whose other end has vanished never fails by itself; an update is due each second.
  function restartWatchdog() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => { showLink("lost"); reconnect(); }, 10000);
  }
  function open() {
    restartWatchdog();
    source = new EventSource("/fleet/events");
    source.onmessage = (event) => {
      fill(document.body, JSON.parse(event.data));
      showLink("live");
      restartWatchdog();
    };
    source.onerror = () => {
      showLink("lost");
      // The browser connects again by itself, unless the response was an error.
      if (source.readyState === EventSource.CLOSED) setTimeout(reconnect, 5000);
    };
  }
  // A hidden page needs no updates, and without its stream nothing is computed for it.
  function reconnect() {
    clearTimeout(watchdog);
    if (source !== null) source.close();
    source = null;
    if (!document.hidden) open();
  }
  document.addEventListener("visibilitychange", reconnect);
  reconnect();

  // A command may take some seconds: its button is busy, and a second press does nothing.
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button === null) return;
    if (button.getAttribute("aria-busy") === "true") event.preventDefault();
    button.setAttribute("aria-busy", "true");
  });
  // A page from the browser's back-forward cache still has its busy buttons.
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  });
})();
