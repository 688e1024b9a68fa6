"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const phone = matchMedia("(max-width: 760px)");
  const PAPER = { wide: 640, half: 290 };
  const LABEL_HEIGHT = 15;
  const LEAST_CHANGE = [-1, 0.5];

  const css = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const roleColor = (role) => css("c-" + role) || css("c-plain");
  const box = (figure) => document.getElementById("plot-" + figure.key);
  const printing = () => root.classList.contains("printing");
  const narrow = () => phone.matches && !printing();
  const labelled = (figure) => !narrow() && !figure.stacked && !figure.crowded && (figure.wide || !printing());

  function inflated(id) {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function inflate(id) {
    const script = document.createElement("script");
    script.textContent = await inflated(id);
    document.head.append(script);
  }

  function trace(figure, spec) {
    const role = spec.meta.role;
    const color = roleColor(role);
    const out = { ...spec, visible: !hidden.has(role) || !figure.toggles, showlegend: false };
    out.line = { ...spec.line, color };
    out.marker = { ...spec.marker, color, line: { color, width: 1.5 } };
    if (figure.stacked) {
      out.fillcolor = color + "66";
      out.fillpattern = { ...spec.fillpattern, fgcolor: color };
    }
    return out;
  }

  const shapeColors = {
    "phase-0": () => ({ fillcolor: css("band-0") }),
    "phase-1": () => ({ fillcolor: css("band-1") }),
    alarm: () => ({ opacity: 0.75, line: { color: css("alarm"), width: 1, dash: "dash" } }),
    limit: () => ({ line: { color: css("alarm"), width: 1, dash: "dot" } }),
  };
  const noteStyles = {
    phase: (alarms) => ({ yshift: alarms ? 20 : 2, font: { size: 13, color: css("soft") } }),
    alarm: () => ({ yshift: 2, bgcolor: css("alarm"), borderpad: 2, font: { size: 11, color: css("page") } }),
    limit: () => ({ font: { size: 11, color: css("alarm") } }),
  };

  const shownTraces = (figure) => figure.data.filter((t) => !(figure.toggles && hidden.has(t.meta.role)));
  const known = (values) => values.filter((v) => v !== null);

  // one line that falls far deeper than all others would flatten them: it may leave the picture
  function floor(figure, traces, high) {
    const lows = traces.map((t) => Math.min(0, ...known(t.y))).sort((a, b) => a - b);
    const [lowest = 0, next = 0] = lows;
    const flattened = lowest < 1.8 * next && high - lowest > 1.5 * (high - next);
    return figure.clip && !figure.whole && lows.length > 2 && flattened ? next : lowest;
  }

  function valueRange(figure) {
    if (figure.stacked) return [0, 1];
    const traces = shownTraces(figure);
    const highs = traces.flatMap((t) => known(t.y));
    const high = Math.max(0, ...highs, figure.limit === null ? 0 : figure.limit * 1.12);
    const low = floor(figure, traces, high);
    const pad = (high - low || 1) * 0.06;
    if (figure.percent) return [0, Math.min(1.02, high + pad)];
    // small changes must not fill the picture: they would look like large ones
    const least = figure.clip && !figure.whole ? LEAST_CHANGE : [0, 0];
    return [Math.min(low - pad, least[0]), Math.max(high + pad, least[1])];
  }

  function lineEnds(figure, range) {
    const ends = [];
    for (const t of shownTraces(figure)) {
      const i = t.y.findLastIndex((v) => v !== null);
      if (i < 0 || t.y[i] > range[1] || (t.y[i] < range[0] && figure.zoom)) continue;
      const below = t.y[i] < range[0];
      const text = below ? `${t.name} ↓ ${t.y[i].toFixed(1).replace("-", "−")}` : t.name;
      ends.push({ text, below, color: roleColor(t.meta.role), x: t.x[i], y: below ? range[0] : t.y[i] });
    }
    return ends.sort((a, b) => b.y - a.y);
  }

  // direct labels at the right ends, moved apart until they do not touch
  function labels(figure, range, height) {
    const ends = lineEnds(figure, range);
    if (!labelled(figure)) return ends.filter((end) => end.below).map(insideLabel);
    const pixel = (y) => (range[1] - y) / (range[1] - range[0]) * height;
    let at = -Infinity;
    for (const end of ends) at = end.at = Math.max(pixel(end.y), at + LABEL_HEIGHT);
    at = height + 6;
    for (const end of [...ends].reverse()) at = end.at = Math.min(end.at, at - LABEL_HEIGHT);
    return ends.map((end) => ({
      text: end.text, x: end.x, y: end.y, xanchor: "left", showarrow: true, arrowhead: 0,
      arrowwidth: 1, arrowcolor: end.color, ax: 22, ay: end.at - pixel(end.y), standoff: 5,
      font: { size: 12, color: end.color },
    }));
  }

  const insideLabel = (end) => ({
    text: end.text, x: end.x, y: end.y, xanchor: "right", yanchor: "bottom", showarrow: false,
    bgcolor: css("page"), font: { size: 12, color: end.color },
  });

  function layout(figure, yRange, xRange) {
    const axis = { gridcolor: css("grid"), linecolor: css("line"), zerolinecolor: css("soft"), zerolinewidth: 1 };
    const margin = { l: 44, r: labelled(figure) ? (figure.wide ? 150 : 128) : 12, t: figure.alarms ? 42 : 24, b: 42 };
    const height = figure.wide ? (narrow() ? 380 : printing() ? 360 : 440) : printing() ? 210 : 280;
    const own = figure.layout;
    const notes = own.annotations.map((n) => ({ ...n, ...noteStyles[n.name](figure.alarms) }));
    const ends = figure.stacked ? [] : labels(figure, yRange, height - margin.t - margin.b);
    return {
      height, margin, width: printing() ? (figure.wide ? PAPER.wide : PAPER.half) : undefined,
      autosize: !printing(), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "inherit", size: 12, color: css("soft") },
      hovermode: narrow() ? "closest" : "x unified", hoverdistance: 40,
      hoverlabel: { bgcolor: css("page"), bordercolor: css("line"), font: { color: css("ink"), size: 12 } },
      dragmode: narrow() ? false : "zoom",
      shapes: own.shapes.map((s) => ({ ...s, ...shapeColors[s.name]() })),
      annotations: [...notes, ...ends],
      xaxis: { ...own.xaxis, ...axis, range: xRange || own.xaxis.range, showgrid: false, zeroline: false,
        ticks: "outside", exponentformat: "none", tickcolor: css("line"), unifiedhovertitle: { text: own.xaxis.title.text + " %{x}" } },
      yaxis: { ...own.yaxis, ...axis, range: yRange },
    };
  }

  const config = () => ({
    displaylogo: false, showTips: false, displayModeBar: narrow() ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "pan2d", "autoScale2d"],
  });

  function draw(figure) {
    const range = figure.zoom || valueRange(figure);
    const plan = layout(figure, range, figure.zoomX);
    return Plotly.react(box(figure), figure.data.map((t) => trace(figure, t)), plan, config());
  }

  const redraw = () => Promise.all(figures.map(draw));

  // labels follow a zoom; a double click gives the whole range back
  function followZoom(figure) {
    box(figure).on("plotly_relayout", (change) => {
      const axes = box(figure).layout;
      const zoomed = Object.keys(change).some((key) => key.includes("axis.range["));
      if (!zoomed && !Object.keys(change).some((key) => key.includes("axis"))) return;
      if (!zoomed && !figure.zoom) figure.whole = !figure.whole;
      figure.zoom = zoomed ? [...axes.yaxis.range] : null;
      figure.zoomX = zoomed ? [...axes.xaxis.range] : null;
      draw(figure);
    });
  }

  function toggle(role) {
    if (!hidden.delete(role)) hidden.add(role);
    for (const button of document.querySelectorAll("button[data-role]"))
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.role)));
    figures.filter((figure) => figure.toggles).forEach(draw);
  }

  function listen() {
    for (const button of document.querySelectorAll("button[data-role]"))
      button.addEventListener("click", () => toggle(button.dataset.role));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let waiting;
    addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
    addEventListener("beforeprint", () => { root.classList.add("printing"); redraw(); });
    addEventListener("afterprint", () => { root.classList.remove("printing"); redraw(); });
  }

  // heat maps of tokens: drawn when a probe is opened, as text and never as markup
  const FULL = 400;
  let tokens = null;
  const minus = (value, digits) => (value > 0 ? "+" : "") + value.toFixed(digits).replace("-", "−");
  const made = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function bar([target, argmax], title) {
    const element = made("i", "");
    element.style.setProperty("--a", target + "%");
    element.style.setProperty("--b", Math.min(100, target + argmax) + "%");
    element.title = `${title}: ${target} % on it, ${argmax} % on the likeliest, ${100 - target - argmax} % on the rest`;
    return element;
  }

  const parts = (answer, when, i) => [answer[when][0][i], answer[when][1][i]];

  function token(answer, i) {
    const change = answer.change[i];
    const element = made("span", "t " + (change > 0 ? "rose" : "fell"));
    const word = made("b", "", answer.text[i].replace(/\n/g, "↵") || "·");
    word.style.setProperty("--heat", Math.round(Math.min(1, Math.abs(change) / FULL) * 100));
    word.title = `${minus(change / 100, 2)} nats`;
    element.append(word, bar(parts(answer, "before", i), "baseline"), bar(parts(answer, "after", i), "latest"));
    return element;
  }

  function row(cells, tag) {
    const element = made("tr", "");
    for (const cell of cells) element.append(made(tag, "", cell));
    for (const head of element.querySelectorAll("th")) head.scope = "col";
    return element;
  }

  function numbersOf(answer) {
    const table = made("table", "");
    const head = made("thead", ""), body = made("tbody", "");
    head.append(row(["token", "change, nats", "on it, %", "on the likeliest, %", "on the rest, %"], "th"));
    answer.text.forEach((text, i) => {
      const [before, after] = ["before", "after"].map((when) => parts(answer, when, i));
      const rest = [before, after].map(([a, b]) => Math.max(0, 100 - a - b));
      const course = (a, b) => `${a} → ${b}`;
      body.append(row([text, minus(answer.change[i] / 100, 2), course(before[0], after[0]),
        course(before[1], after[1]), course(...rest)], "td"));
    });
    table.append(head, body);
    return table;
  }

  function numbersBox(answer) {
    const box = made("details", "numbers");
    box.append(made("summary", "", "Numbers"));
    box.addEventListener("toggle", () => {
      if (!box.open || box.querySelector("table")) return;
      const scroll = made("div", "scroll");
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", "Numbers of each token");
      scroll.append(numbersOf(answer));
      box.append(scroll);
    });
    return box;
  }

  async function fill(card) {
    if (card.dataset.drawn) return;
    card.dataset.drawn = "yes";
    tokens ||= JSON.parse(await inflated("details"));
    const answers = tokens[card.dataset.place];
    for (const box of card.querySelectorAll(".tokens")) {
      const answer = answers[box.dataset.type];
      if (!answer) continue;
      box.replaceChildren(...answer.text.map((_, i) => token(answer, i)));
      if (answer.more) box.append(made("small", "", ` … (+${answer.more} tokens)`));
      box.after(numbersBox(answer));
    }
  }

  function listenToCards() {
    if (!document.getElementById("details").textContent || !window.DecompressionStream) return;
    for (const card of document.querySelectorAll("details.moved"))
      card.addEventListener("toggle", () => { if (card.open) fill(card); });
  }

  async function start() {
    listenToCards();
    if (!figures.length) { root.dataset.ready = "text"; return; }
    try {
      await inflate("plotly");
      await redraw();
      figures.forEach(followZoom);
      listen();
      root.dataset.ready = "plots";
    } catch (error) {
      root.classList.add("no-plots");
      document.querySelectorAll("figure details").forEach((d) => { d.open = true; });
      root.dataset.ready = "tables";
      console.warn("forcegauge: no plots in this browser, the tables have the numbers", error);
    }
  }
  start();
})();
