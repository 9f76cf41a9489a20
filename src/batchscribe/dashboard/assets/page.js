// Every page: times in the reader's own zone. The text in the page is UTC, for readers without scripts.
"use strict";

const MINUTES = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const SECONDS = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function showTime(each) {
  const at = new Date(each.dateTime);
  if (Number.isNaN(at.getTime())) return;
  each.title = each.dateTime;
  each.textContent = ("seconds" in each.dataset ? SECONDS : MINUTES).format(at);
}

function showTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) showTime(each);
}

showTimes(document);
