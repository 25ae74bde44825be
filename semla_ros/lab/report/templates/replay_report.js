"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const time = data.timeline;
  const names = Object.keys(time.variants);
  const colourOf = (name) => data.variant_colours[name];
  const adapterColour = (name) => data.adapter_colours[name] || "#9aa4b1";

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter(Boolean));
    return node;
  };
  const shape = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const clock = (seconds) => {
    if (time.t.length && time.t[time.t.length - 1] < 300) return `${seconds.toFixed(1)} s`;
    const minutes = Math.floor(seconds / 60), rest = Math.round(seconds % 60);
    return `${minutes}:${String(rest).padStart(2, "0")} min`;
  };

  // Charts: one width, one time axis, so that what lies above each other happened at the same time.
  const WIDTH = 1100, LEFT = 48, RIGHT = 12, TOP = 24, BOTTOM = 26;
  const end = time.t.length ? time.t[time.t.length - 1] + time.bin_s / 2 : 1;
  const x = (seconds) => LEFT + (seconds / end) * (WIDTH - LEFT - RIGHT);
  const runs = [];
  time.segment.forEach((segment, index) => {
    const from = index ? (time.t[index - 1] + time.t[index]) / 2 : 0;
    const last = runs[runs.length - 1];
    if (last && last.segment === segment) last.to = index + 1 < time.t.length ? (time.t[index] + time.t[index + 1]) / 2 : end;
    else runs.push({ segment, from, to: index + 1 < time.t.length ? (time.t[index] + time.t[index + 1]) / 2 : end });
  });
  const niceStep = (span, count) => {
    const raw = span / count, power = 10 ** Math.floor(Math.log10(raw || 1));
    return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= raw) || raw;
  };

  function frameOf(box, height, low, high, format) {
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": box.dataset.label || "" });
    const y = (value) => TOP + (1 - (value - low) / (high - low || 1)) * (height - TOP - BOTTOM);
    for (const run of runs) {
      if (!run.segment || run.segment === "transition") continue;
      const [r, g, b] = data.segment_colours[run.segment] || [120, 130, 140];
      svg.append(shape("rect", { x: x(run.from), y: TOP, width: Math.max(0, x(run.to) - x(run.from)), height: height - TOP - BOTTOM, fill: `rgba(${r},${g},${b},0.13)` }));
      if (x(run.to) - x(run.from) > 7 * run.segment.length)
        svg.append(shape("text", { x: (x(run.from) + x(run.to)) / 2, y: TOP - 8, "text-anchor": "middle" }, run.segment));
    }
    const step = niceStep(high - low, 4);
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) {
      svg.append(shape("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(shape("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    }
    const timeStep = niceStep(end, 9);
    for (let seconds = 0; seconds <= end; seconds += timeStep)
      svg.append(shape("text", { x: x(seconds), y: height - 8, "text-anchor": "middle" }, clock(seconds).replace(/\.0 s/, " s")));
    box.append(svg);
    return { svg, y };
  }

  function pathOf(values, y) {
    let path = "", isOpen = false, lastTime = null;
    values.forEach((value, index) => {
      if (value === null) return;
      // A hole of a few stretches is an image rate lower than the chart's resolution; a longer one is a pause.
      const isJoined = isOpen && time.t[index] - lastTime < Math.max(6 * time.bin_s, 3);
      path += `${isJoined ? "L" : "M"}${x(time.t[index]).toFixed(1)} ${y(value).toFixed(1)}`;
      isOpen = true;
      lastTime = time.t[index];
    });
    return path;
  }

  function addCursor(box, svg, height, describe) {
    const line = shape("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, x1: 0, x2: 0, visibility: "hidden" });
    svg.append(line);
    const tip = element("div", { class: "tip", hidden: "" });
    box.append(tip);
    box.addEventListener("mousemove", (event) => {
      const bounds = svg.getBoundingClientRect();
      const seconds = (((event.clientX - bounds.left) / bounds.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * end;
      let best = 0;
      time.t.forEach((value, index) => { if (Math.abs(value - seconds) < Math.abs(time.t[best] - seconds)) best = index; });
      const at = x(time.t[best]);
      line.setAttribute("x1", at); line.setAttribute("x2", at); line.setAttribute("visibility", "visible");
      tip.hidden = false;
      tip.replaceChildren(element("b", { text: `${clock(time.t[best])}${time.segment[best] ? ` · ${time.segment[best]}` : ""}` }), ...describe(best));
      const place = (at / WIDTH) * bounds.width;
      tip.style.left = place + tip.offsetWidth + 24 > bounds.width ? `${place - tip.offsetWidth - 12}px` : `${place + 12}px`;
    });
    box.addEventListener("mouseleave", () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); });
  }
  const tipRow = (colour, name, text) => element("div", {}, element("span", { class: "swatch", style: `background:${colour}` }), `${name} `, element("span", { text }));

  function lines(id, measure, { height = 230, digits = 2, low = null, high = null, threshold = null, only = names, unit = "" } = {}) {
    const box = document.getElementById(id);
    if (!box) return;
    const shown = only.filter((name) => time.variants[name][measure].some((value) => value !== null));
    const all = shown.flatMap((name) => time.variants[name][measure].filter((value) => value !== null));
    if (!all.length) { box.append(element("p", { class: "note", text: "Nothing was measured here." })); return; }
    const top = high !== null ? high : Math.max(...all, threshold === null ? -Infinity : threshold) * 1.08 || 1;
    const bottom = low !== null ? low : Math.max(0, Math.floor(Math.min(...all) * 10) / 10);
    const legend = element("div", { class: "legend" });
    box.append(legend);
    const { svg, y } = frameOf(box, height, bottom, top, (value) => `${+value.toFixed(3)}`);
    const showThreshold = () => {
      if (threshold === null) return;
      svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(threshold), y2: y(threshold), stroke: "#b42318", "stroke-dasharray": "5 4" }));
      svg.append(shape("text", { x: WIDTH - RIGHT - 4, y: y(threshold) - 5, "text-anchor": "end", class: "on", style: "fill:#b42318" }, `threshold ${threshold}`));
    };
    // The primary variant is drawn last, over the others; the legend keeps their order.
    const buttons = {};
    for (const name of [...shown].sort((a, b) => (a === data.primary) - (b === data.primary))) {
      const path = shape("path", { d: pathOf(time.variants[name][measure], y), fill: "none", stroke: colourOf(name), "stroke-width": name === data.primary ? 2.4 : 1.7, "stroke-linejoin": "round", "data-variant": name });
      svg.append(path);
      const button = element("button", { type: "button", title: "show or hide", onclick: () => {
        const isOff = button.classList.toggle("off");
        path.setAttribute("visibility", isOff ? "hidden" : "visible");
      } }, element("span", { class: "swatch", style: `background:${colourOf(name)}` }), name);
      buttons[name] = button;
    }
    legend.append(...shown.map((name) => buttons[name]));
    showThreshold();
    addCursor(box, svg, height, (index) => shown.map((name) => tipRow(colourOf(name), name, fixed(time.variants[name][measure][index], digits) + unit)));
  }

  function weightChart(id) {
    const box = document.getElementById(id);
    if (!box) return;
    const weights = time.variants[data.primary].weights;
    const total = (name) => weights[name].reduce((sum, value) => sum + value, 0);
    const adapters = Object.keys(weights).filter((name) => total(name) > 0).sort((a, b) => (a === "base model") - (b === "base model") || total(b) - total(a));
    const legend = element("div", { class: "legend" });
    for (const name of adapters) legend.append(element("span", {}, element("span", { class: "swatch", style: `background:${adapterColour(name)}` }), name));
    box.append(legend);
    const height = 230;
    const { svg, y } = frameOf(box, height, 0, 1, (value) => `${Math.round(value * 100)} %`);
    const below = time.t.map(() => 0);
    const edge = (index) => [index ? (time.t[index - 1] + time.t[index]) / 2 : 0, index + 1 < time.t.length ? (time.t[index] + time.t[index + 1]) / 2 : end];
    for (const name of adapters) {
      const upper = [], lower = [];
      weights[name].forEach((value, index) => {
        const [from, to] = edge(index);
        const base = below[index];
        upper.push(`${x(from).toFixed(1)} ${y(base + value).toFixed(1)}`, `${x(to).toFixed(1)} ${y(base + value).toFixed(1)}`);
        lower.push(`${x(from).toFixed(1)} ${y(base).toFixed(1)}`, `${x(to).toFixed(1)} ${y(base).toFixed(1)}`);
        below[index] += value;
      });
      const back = [];
      for (let index = lower.length - 1; index >= 0; index -= 1) back.push(lower[index]);
      svg.append(shape("path", { d: `M${upper.join("L")}L${back.join("L")}Z`, fill: adapterColour(name), "fill-opacity": 0.88, "data-adapter": name }));
    }
    for (const fusion of data.fusions) {
      const mark = shape("path", { d: `M${x(fusion.t)} ${height - BOTTOM + 1}l-3.5 7h7z`, fill: "#1b2330", class: "fusion" });
      mark.append(shape("title", {}, `generation ${fusion.generation} at ${clock(fusion.t)}, heaviest: ${fusion.heaviest}`));
      svg.append(mark);
    }
    addCursor(box, svg, height, (index) => adapters.filter((name) => weights[name][index] >= 0.005).map((name) => tipRow(adapterColour(name), name, `${(weights[name][index] * 100).toFixed(0)} %`)));
  }

  // Frames worth a look
  let category = 0, chosen = 0, showErrors = false;
  const load = (source) => new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = reject;
    picture.src = source;
  });
  async function errorPicture(mask, truth) {
    const [a, b] = await Promise.all([load(mask), load(truth)]);
    const canvas = element("canvas", { width: a.width, height: a.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(b, 0, 0, a.width, a.height);
    const right = context.getImageData(0, 0, a.width, a.height);
    context.drawImage(a, 0, 0);
    const given = context.getImageData(0, 0, a.width, a.height);
    for (let i = 0; i < given.data.length; i += 4) {
      const isUnlabelled = right.data[i] + right.data[i + 1] + right.data[i + 2] === 0;
      const isSame = given.data[i] === right.data[i] && given.data[i + 1] === right.data[i + 1] && given.data[i + 2] === right.data[i + 2];
      if (isUnlabelled || isSame) for (let c = 0; c < 3; c += 1) given.data[i + c] = 236 + 0.06 * given.data[i + c];
    }
    context.putImageData(given, 0, 0);
    return canvas;
  }
  async function panel(title, detail, source, truth) {
    let picture;
    if (!source) picture = element("div", { class: "note", text: "no mask was ready" });
    else if (showErrors && truth) picture = await errorPicture(source, truth);
    else picture = element("img", { src: source, alt: title });
    return element("figure", { class: "panel" }, element("figcaption", {}, element("b", { text: title }), element("span", { text: detail })), picture);
  }
  function explanation(frame) {
    const entry = frame.variants[data.primary];
    const box = element("div", { class: "explain" });
    const where = entry.scene_age_s === null ? "" : `, retrieved for a scene ${entry.scene_age_s.toFixed(1)} s earlier`;
    box.append(element("h3", { text: `Why ${data.primary} looked like this: generation ${entry.generation} (${entry.reason})${where}` }));
    if (entry.mix.out_of_library) box.append(element("p", { class: "bad", text: "The scene lies outside the library: even the nearest centroid is farther than the library's own spread." }));
    const rows = [...entry.mix.adapters, { name: "base model", weight: entry.mix.base_weight, distance: null }].filter((row) => row.weight > 0.0005 || row.distance !== null);
    box.append(element("div", { class: "mixrow mixhead" }, element("span", { text: "adapter" }), element("span", { text: "weight in the fused model" }), element("span", { class: "num", text: "weight" }), element("span", { class: "num", text: "distance" })));
    for (const row of rows) {
      box.append(element("div", { class: "mixrow" },
        element("span", { text: row.name }),
        element("span", { class: "track" }, element("span", { class: "fill", style: `display:block;width:${(row.weight * 100).toFixed(1)}%;background:${adapterColour(row.name)}` })),
        element("span", { class: "num", text: `${(row.weight * 100).toFixed(1)} %` }),
        element("span", { class: "num", text: row.distance === null ? "–" : row.distance.toFixed(3) })));
    }
    return box;
  }
  async function showFrame() {
    const frames = data.gallery[category].frames, frame = frames[chosen];
    document.querySelectorAll(".thumb").forEach((thumb, index) => thumb.setAttribute("aria-pressed", String(index === chosen)));
    const view = document.getElementById("frame-view");
    const panels = await Promise.all([
      panel("camera", frame.camera || "", frame.image, null),
      frame.truth ? panel("truth", "", frame.truth, null) : null,
      ...names.map((name) => {
        const entry = frame.variants[name];
        const detail = entry.miou !== null ? `mIoU ${fixed(entry.miou, 3)}` : `confidence ${fixed(entry.confidence, 2)}`;
        return panel(name, detail, entry.mask, frame.truth);
      }),
    ].filter(Boolean));
    const toggle = element("label", {}, element("input", { type: "checkbox", id: "show-errors", ...(showErrors ? { checked: "" } : {}), onchange: (event) => { showErrors = event.target.checked; showFrame(); } }), " show only what is wrong");
    const bar = element("div", { class: "bar" },
      element("div", {}, element("b", { text: `Frame ${frame.index} at ${clock(frame.t)}` }), element("span", { class: "note", text: `  ${frame.segment ? `${frame.segment}, ` : ""}stamp ${frame.stamp_ns} ns` })),
      element("div", {}, frame.truth ? toggle : null, " ",
        element("button", { type: "button", id: "previous", onclick: () => step(-1), text: "‹ previous" }), " ",
        element("button", { type: "button", id: "next", onclick: () => step(1), text: "next ›" })));
    view.replaceChildren(bar, element("div", { class: "panels" }, ...panels), explanation(frame));
    view.dataset.frame = frame.index;
  }
  function step(by) {
    const count = data.gallery[category].frames.length;
    chosen = (chosen + by + count) % count;
    showFrame();
  }
  function showCategory(index) {
    category = index; chosen = 0;
    document.querySelectorAll("#categories button").forEach((button, number) => button.setAttribute("aria-selected", String(number === index)));
    document.getElementById("category-note").textContent = data.gallery[index].note;
    document.getElementById("thumbs").replaceChildren(...data.gallery[index].frames.map((frame, number) => {
      const entry = frame.variants[data.primary];
      const figure = entry.miou !== null ? `mIoU ${fixed(entry.miou, 2)}` : `confidence ${fixed(entry.confidence, 2)}`;
      return element("button", { type: "button", class: "thumb", "aria-pressed": "false", onclick: () => { chosen = number; showFrame(); } },
        element("img", { src: frame.image, alt: `frame ${frame.index}` }),
        element("span", {}, element("b", { text: figure }), `${clock(frame.t)}${frame.segment ? ` · ${frame.segment}` : ""}`));
    }));
    return showFrame();
  }

  lines("chart-miou", "miou", { low: 0 });
  lines("chart-confidence", "confidence");
  lines("chart-flicker", "flicker", { low: 0, height: 190, digits: 3 });
  lines("chart-drift", "drift", { low: 0, height: 170, digits: 3, threshold: data.drift_threshold, only: names.filter((name) => data.adapting.includes(name)) });
  lines("chart-latency", "latency", { low: 0, height: 190, digits: 1, unit: " ms" });
  weightChart("chart-weights");
  if (data.gallery.length) {
    document.getElementById("categories").append(...data.gallery.map((item, index) => element("button", { type: "button", role: "tab", onclick: () => showCategory(index), text: `${item.title} (${item.frames.length})` })));
    showCategory(0).then(() => { document.body.dataset.ready = "yes"; });
  } else document.body.dataset.ready = "yes";
})();
