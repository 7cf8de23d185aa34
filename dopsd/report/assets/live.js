// A served page refreshes itself: sections that changed are exchanged, the others stay as they are.

const sources = new Map(
  [...document.querySelectorAll("main > section, #state")].map((part) => [part.id, part.innerHTML]),
);

// What a person has opened and chosen in a section, to be found in the next one.
const choices = (part) => [
  ...[...part.querySelectorAll("details")].map((d) => [d, d.querySelector("summary").textContent, "open"]),
  ...[...part.querySelectorAll("select, input")].map((field) => [field, field.name, "value"]),
];
const exchange = (old, fresh) => {
  const kept = new Map(choices(old).map(([element, name, what]) => [name, element[what]]));
  const focused = old.contains(document.activeElement);
  old.replaceWith(document.adoptNode(fresh));
  setUp();
  for (const [element, name, what] of choices(byId(fresh.id))) {
    if (!kept.has(name) || element[what] === kept.get(name)) continue;
    element[what] = kept.get(name);
    if (what === "value") {
      for (const kind of ["input", "change"]) {
        element.dispatchEvent(new Event(kind, { bubbles: true }));
      }
    }
  }
  if (focused) byId("live").focus();
};

let seen = null;
const refresh = async () => {
  let next = 3;
  try {
    const state = await (await fetch("stamp")).json();
    next = state.seconds;
    if (state.problem) throw new Error(state.problem);
    if (seen !== state.stamp) {
      const answer = await fetch("./");
      const text = await answer.text();
      if (!answer.ok) throw new Error(text);
      const page = new DOMParser().parseFromString(text, "text/html");
      for (const part of page.querySelectorAll("main > section, #state")) {
        if (sources.get(part.id) === part.innerHTML) continue;
        const known = byId(part.id);
        sources.set(part.id, part.innerHTML);
        if (known) exchange(known, part);
        else location.reload(); // a section that was not there before
      }
      seen = state.stamp;
    }
    byId("live").textContent = state.finished
      ? "" : `live, as of ${new Date().toLocaleTimeString()}`;
    if (state.finished) return;
  } catch (error) {
    byId("live").textContent = error instanceof TypeError
      ? "its server has ended: this page stays as it is" : error.message;
  }
  setTimeout(refresh, 1000 * next);
};
setTimeout(refresh, 0);
