// Pictures: enlarged by a click or Enter, looked through by arrows, before and after under a slider.

const viewer = byId("viewer");
for (const place of ["before", "after"]) {
  const image = new Image();
  image.className = place;
  viewer.querySelector(".stage").append(image);
}

// Of a served page the whole picture; of a file that lies about, what is in it.
const whole = (image) =>
  location.protocol.startsWith("http") && image.dataset.file ? image.dataset.file : image.src;

// The pictures of a group in order; one that is in none stands for itself.
const groupOf = (image) =>
  image.dataset.group
    ? [...document.querySelectorAll(`main img[data-group="${image.dataset.group}"]`)]
    : [image];

// Lay `after` over `before`, so that the slider draws the border between them.
const lay = (stage, slider, before, after, full) => {
  stage.style.setProperty("--ratio", after.getAttribute("width") / after.getAttribute("height"));
  for (const [place, image] of [[".before", before], [".after", after]]) {
    const shown = stage.querySelector(place);
    shown.src = full ? whole(image) : image.src;
    shown.alt = image.alt;
    shown.classList.toggle("pixel", image.classList.contains("pixel"));
  }
  const slide = () => stage.style.setProperty("--at", `${slider.value}%`);
  slider.oninput = slide;
  slide();
};

let shown = null;
const show = (image) => {
  shown = image;
  const group = groupOf(image);
  const slider = viewer.querySelector("input");
  const alone = image === group[0];
  slider.value = 0;
  slider.parentElement.hidden = alone;
  lay(viewer.querySelector(".stage"), slider, group[0], image, true);
  const place = group.length > 1 ? ` (${group.indexOf(image) + 1} of ${group.length})` : "";
  byId("viewer-name").textContent = image.alt + place;
  for (const [name, end] of [["previous", group[0]], ["next", group[group.length - 1]]]) {
    viewer.querySelector(`[name=${name}]`).disabled = image === end;
  }
  if (!viewer.open) viewer.showModal();
};
const step = (by) => {
  const group = groupOf(shown);
  const next = group[group.indexOf(shown) + by];
  if (next) show(next);
};

viewer.addEventListener("click", (event) => {
  const name = event.target.name;
  if (event.target === viewer || name === "close") viewer.close();
  if (name === "previous") step(-1);
  if (name === "next") step(1);
});
viewer.addEventListener("keydown", (event) => {
  if (event.target.type === "range") return; // whose arrows move it
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

const compare = (figure) => {
  const group = [...figure.querySelectorAll(`img[data-group="${figure.dataset.compare}"]`)];
  if (group.length < 2 || figure.querySelector(".compare")) return;
  const place = document.createElement("div");
  place.className = "compare";
  const stage = viewer.querySelector(".stage").cloneNode(true);
  const label = viewer.querySelector(".slide").cloneNode(true);
  const slider = label.querySelector("input");
  const last = group[group.length - 1];
  label.hidden = false;
  slider.name = figure.dataset.compare;
  slider.value = 50;
  stage.querySelector(".after").addEventListener("click", () => show(last));
  lay(stage, slider, group[0], last, false);
  place.append(stage, label);
  figure.querySelector(".scroll").before(place);
};

const pictures = () => {
  document.querySelectorAll("[data-compare]").forEach(compare);
  for (const image of document.querySelectorAll("main img:not(.before, .after, [tabindex])")) {
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => show(image));
    image.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        show(image);
      }
    });
  }
};

// Commands to be copied; where the browser lets nobody, the text is selected.
const commands = () => {
  for (const place of document.querySelectorAll(".command:not(:has(button))")) {
    const button = document.createElement("button");
    const text = place.querySelector("pre");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(text);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "copied";
      } catch {
        button.textContent = "selected";
      }
    });
    place.append(button);
  }
};

const setUp = () => {
  trajectories();
  closeUp();
  pictures();
  commands();
};
