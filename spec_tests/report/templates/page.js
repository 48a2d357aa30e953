"use strict";
// The page is whole without this: it opens chapters for links, print and the buttons.
const chapters = [...document.querySelectorAll("details.chapter")];
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();
let before = [];
addEventListener("beforeprint", () => {
  const all = [...document.querySelectorAll("details:not(.detail)")];
  before = all.filter((one) => !one.open);
  for (const one of before) one.open = true;
});
addEventListener("afterprint", () => { for (const one of before) one.open = false; });
const all = document.getElementById("open-all");
all.hidden = false;
all.addEventListener("click", () => {
  const open = chapters.some((one) => !one.open);
  for (const one of chapters) one.open = open;
});
const only = document.getElementById("only-troubled");
if (only) {
  only.hidden = false;
  only.addEventListener("click", () => {
    const on = only.getAttribute("aria-pressed") !== "true";
    only.setAttribute("aria-pressed", String(on));
    for (const one of document.querySelectorAll("ol.spec > li"))
      one.hidden = on && !["bad", "warn", "lack", "unsure"].includes(one.dataset.tone);
    for (const one of chapters) if (on) one.open = Boolean(one.querySelector("ol.spec > li:not([hidden])"));
  });
}
