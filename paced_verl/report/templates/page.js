"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const root = document.documentElement;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function themed(layout) {
  const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line") };
  const result = { ...layout, font: { ...layout.font, color: colour("--text"), size: 12 } };
  result.hoverlabel = { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) result[key] = { ...layout[key], ...axis };
  }
  return result;
}

function draw() {
  for (const [id, figure] of Object.entries(charts)) {
    const options = { responsive: true, displayModeBar: false };
    for (const trace of figure.data) {
      if (trace.type === "heatmap") trace.textfont = { color: colour("--text") };
    }
    Plotly.react(id, figure.data, themed(figure.layout), options);
  }
}

document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  draw();
});
dark.addEventListener("change", draw);
draw();
