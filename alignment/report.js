function compact(value) {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(4) + "M";
  if (size >= 1e4) return (value / 1e3).toPrecision(4) + "k";
  return String(Number(value.toPrecision(4)));
}

// Index of the entry of an ascending list that is nearest to x.
function nearest(list, x) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] <= x) low = middle; else high = middle;
  }
  return Math.abs(list[high] - x) < Math.abs(list[low] - x) ? high : low;
}

// A vertical cursor, a dot on each curve and a read-out of the values at the step under the pointer.
function addReadout(figure) {
  const data = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg");
  const [left, right, bottom, top] = data.box;
  const px = (step) => left + (step - data.x[0]) / (data.x[1] - data.x[0]) * (right - left);
  const py = (value) => bottom - (value - data.y[0]) / (data.y[1] - data.y[0]) * (bottom - top);
  const steps = [...new Set(data.series.flatMap((s) => [...s.steps, ...s.eval.map((e) => e[0])]))].sort((a, b) => a - b);
  const unit = (value) => data.percent && value !== null ? compact(value * 100) + " %" : compact(value);
  const marks = document.createElementNS(svg.namespaceURI, "g");
  const tip = element("div", "tip");
  tip.hidden = true;
  svg.append(marks);
  figure.append(tip);

  function mark(name, attributes) {
    const node = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    marks.append(node);
  }

  function row(color, name, value, detail) {
    const line = element("div", "c" + color);
    line.append(element("i", ""), name + " ", element("b", "", unit(value)));
    if (detail) line.append(element("em", "", " " + detail));
    tip.append(line);
  }

  function show(event) {
    const box = svg.getBoundingClientRect(), scale = (right + 12) / box.width;
    const x = (event.clientX - box.left) * scale;
    const step = steps[nearest(steps, data.x[0] + (x - left) / (right - left) * (data.x[1] - data.x[0]))];
    marks.replaceChildren();
    tip.replaceChildren(element("div", "", "step " + step));
    mark("path", { class: "cursor", d: `M${px(step)} ${top}V${bottom}` });
    data.series.forEach((series, color) => {
      const at = series.steps.length ? nearest(series.steps, step) : -1;
      if (at >= 0) {
        const { middle, low, high } = series, value = middle[at];
        const raw = low[at] === high[at] ? unit(low[at]) : unit(low[at]) + " to " + unit(high[at]);
        row(color, series.name, value, value === low[at] && value === high[at] ? "" : "(raw " + raw + ")");
        const y = py(value);
        if (value !== null && y >= top - 2 && y <= bottom + 2) mark("circle", { class: "dot c" + color, cx: px(series.steps[at]), cy: y, r: 3.2 });
      }
      for (const [evalStep, value] of series.eval) if (evalStep === step) row(color, "eval " + series.name, value, "");
    });
    tip.hidden = false;
    const outer = figure.getBoundingClientRect(), anchor = box.left - outer.left + px(step) / scale;
    const fitsRight = anchor + 14 + tip.offsetWidth <= outer.width;
    tip.style.left = (fitsRight ? anchor + 14 : Math.max(4, anchor - 14 - tip.offsetWidth)) + "px";
    const below = box.bottom + tip.offsetHeight <= window.innerHeight; // beside the curves, not over them
    tip.style.top = (below ? box.bottom - 4 : box.top - 4 - tip.offsetHeight) - outer.top + "px";
  }

  function hide() {
    marks.replaceChildren();
    tip.hidden = true;
  }

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// Views (latest, best, worst, all) and the text filter.
function addSampleTools(stage) {
  const tools = stage.querySelector(".tools");
  if (!tools) return;
  const list = stage.querySelector(".samples ol"), rows = [...list.children], input = tools.querySelector("input");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const buttons = [...tools.querySelectorAll("button")];
  let view = "latest";

  function update() {
    const words = input.value.trim().toLowerCase();
    let visible = 0;
    rows.forEach((row, index) => {
      const inView = view === "all" || row.dataset.views.split(" ").includes(view);
      row.hidden = !(inView && texts[index].includes(words));
      visible += !row.hidden;
    });
    const reward = (row) => Number(row.dataset.reward); // an unscored row (0 here) is in neither sorted view
    const sign = { best: -1, worst: 1 }[view];
    const ordered = sign ? [...rows].sort((a, b) => sign * (reward(a) - reward(b)) || b.dataset.step - a.dataset.step) : rows;
    list.replaceChildren(...ordered);
    list.scrollTop = 0;
    stage.querySelector(".samples .empty").hidden = visible > 0;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
  }

  for (const button of buttons) button.addEventListener("click", () => { view = button.dataset.view; update(); });
  input.addEventListener("input", update);
  tools.hidden = false;
  update();
}

document.querySelectorAll("figure.chart").forEach(addReadout);
document.querySelectorAll("section.stage").forEach(addSampleTools);
document.documentElement.dataset.ready = "true";
