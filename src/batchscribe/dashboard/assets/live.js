// Pages that follow a run: a part of the page is replaced every few seconds, without flicker.
"use strict";

// A time arrives in UTC: it gets the reader's zone before it is compared with what is shown.
Idiomorph.defaults.callbacks.beforeNodeMorphed = (_shown, next) => {
  if (next.nodeName === "TIME") showTime(next);
};
Idiomorph.defaults.callbacks.beforeNodeAdded = (node) => {
  if (node.nodeType === Node.ELEMENT_NODE) showTimes(node);
};

for (const [event, lost] of [["htmx:sendError", true], ["htmx:responseError", true], ["htmx:afterOnLoad", false]]) {
  document.body.addEventListener(event, () => {
    for (const each of document.querySelectorAll("[data-lost]")) each.hidden = !lost;
  });
}
