"use strict";
// Without this script everything is still there: all trajectories one below the other, no close-up.

const byId = (id) => document.getElementById(id);

const trajectories = () => {
  const path = byId("path-choice");
  if (!path || !path.hidden) return;
  path.hidden = false;
  path.version.selectedIndex = path.version.options.length - 1;
  const choose = () => {
    for (const panel of document.querySelectorAll(".path")) {
      panel.hidden =
        panel.dataset.sample !== path.sample.value || panel.dataset.version !== path.version.value;
    }
  };
  path.addEventListener("change", choose);
  choose();
};

const closeUp = () => {
  const spans = byId("spans");
  if (!spans || !byId("close").hidden) return;
  const data = JSON.parse(spans.textContent);
  const form = byId("close-choice");
  const widths = [...new Set([0.25, 1, 4, 16].map((f) => Math.min(data.end, f * data.width)))];
  for (const width of widths) {
    const option = new Option(`${Number(width.toPrecision(2))} s`, width);
    option.selected = width === Math.min(data.end, data.width);
    form.width.add(option);
  }
  byId("close").hidden = false;
  const range = () => Math.max(1e-6, data.end - form.width.value);
  const draw = () => {
    const width = Number(form.width.value);
    const from = (form.at.value / 1000) * range();
    for (const svg of document.querySelectorAll("svg[data-lane]")) {
      svg.replaceChildren();
      for (const [lane, task, step, start, end, busy] of data.spans) {
        if (lane !== Number(svg.dataset.lane) || end < from || start > from + width) continue;
        const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        bar.setAttribute("x", ((start - from) / width) * 1000);
        bar.setAttribute("width", Math.max(1, ((end - start) / width) * 1000 - 0.8));
        bar.setAttribute("height", 10);
        bar.setAttribute("class", `t${task}`);
        bar.setAttribute("fill-opacity", 0.15 + 0.85 * Math.min(1, busy / (end - start || 1)));
        const tell = () => {
          byId("close-task").textContent =
            `${data.lanes[lane]}: ${data.tasks[task].replaceAll("_", " ")}, step ${step}, ` +
            `${busy.toFixed(2)} s from ${start.toFixed(2)} s`;
        };
        bar.addEventListener("pointerenter", tell);
        bar.addEventListener("click", tell);
        svg.append(bar);
      }
    }
    byId("close-from").textContent = `${from.toFixed(1)} s`;
    byId("close-to").textContent = `${(from + width).toFixed(1)} s`;
  };
  form.at.value = Math.round((1000 * Math.max(0, data.at - form.width.value / 2)) / range());
  form.addEventListener("input", draw);
  draw();
};
