"use strict";
// Without this script everything is still there, failures first; it searches, sorts and filters.

const form = document.querySelector("#find");
const list = document.querySelector(".items");
const fold = (text) => text.normalize("NFKC").toLowerCase();
const items = [...list.children].map((element) => ({
  element,
  name: fold(element.querySelector(".name").textContent),
  why: fold(element.querySelector(".why")?.textContent ?? ""),
}));
const names = new Intl.Collator(undefined, { numeric: true });

const score = (item, key) => {
  const text = item.element.dataset[key];
  return text === undefined ? NaN : Number(text);
};

const within = (item) => {
  const [from, to] = [form.from, form.to].map((input) => input.valueAsNumber);
  if (Number.isNaN(from) && Number.isNaN(to)) return true;
  const value = score(item, form.score.value);
  return !(Number.isNaN(value) || value < from || value > to);
};

const filter = () => {
  const words = fold(form.q.value).split(/\s+/).filter(Boolean);
  const status = form.status.value;
  let count = 0;
  for (const item of items) {
    const found = words.every((word) => item.name.includes(word) || item.why.includes(word));
    const shown = found && (!status || item.element.dataset.status === status) && within(item);
    item.element.hidden = !shown;
    count += shown;
  }
  form.shown.textContent = `${count} of ${items.length}`;
};

const sort = () => {
  const order = form.order.value;
  const [key, sign] = order.startsWith("-") ? [order.slice(1), -1] : [order, 1];
  const compare = (a, b) => {
    if (key === "name") return names.compare(a.name, b.name);
    const [left, right] = [score(a, key), score(b, key)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
    return sign * (left - right);
  };
  const sorted = key ? items.toSorted(compare) : items;
  list.append(...sorted.map((item) => item.element));
};

const move = (by) => {
  const shown = [...list.children].filter((element) => !element.hidden);
  const at = shown.indexOf(document.activeElement.closest(".item"));
  const next = shown[Math.max(0, Math.min(shown.length - 1, at < 0 ? 0 : at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
};

const keys = {
  "/": () => form.q.focus(),
  j: () => move(1),
  k: () => move(-1),
  "[": () => document.querySelector("[rel=prev]")?.click(),
  "]": () => document.querySelector("[rel=next]")?.click(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const item = document.activeElement.closest(".item");
  let act = keys[event.key];
  if (document.activeElement.closest("input, select")) act = undefined;
  if (event.key === "Escape") {
    act = () => {
      form.reset();
      sort();
      filter();
      document.activeElement.blur();
    };
  } else if (event.key === "Enter" && document.activeElement === form.q) {
    act = () => move(0);
  } else if (event.key === "Enter" && item === document.activeElement) {
    act = () => item?.querySelector("a")?.click();
  } else if (item && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    act = () => move(event.key === "ArrowDown" ? 1 : -1);
  }
  if (!act) return;
  event.preventDefault();
  act();
});

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  if (event.target === form.order) sort();
  filter();
});
form.hidden = false;
filter();
