// Every page: times in the reader's own zone. The text in the page is UTC, for readers without scripts.
"use strict";

const SHOWN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function showTime(each) {
  const at = new Date(each.dateTime);
  if (Number.isNaN(at.getTime())) return;
  each.title = each.dateTime;
  each.textContent = SHOWN.format(at);
}

function showTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) showTime(each);
}

showTimes(document);
