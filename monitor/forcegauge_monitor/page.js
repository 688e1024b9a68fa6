"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const css = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const color = (role) => css("c-" + role) || css("c-plain");

  async function inflate(id) {
    const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  const scales = {
    norm: () => [[0, css("page")], [1, css("c-one")]],
    signed: () => [[0, css("c-two")], [0.5, css("page")], [1, css("c-one")]],
  };

  function trace(spec) {
    if (spec.type === "heatmap") {
      return { ...spec, colorscale: scales[spec.meta.scale](),
        showscale: matchMedia("(min-width: 761px)").matches, colorbar: { thickness: 12, outlinewidth: 0, tickfont: { color: css("soft") } } };
    }
    const own = color(spec.meta.role);
    return { ...spec, marker: { ...spec.marker, color: own }, line: { ...spec.line, color: own } };
  }

  function layout(figure) {
    const axis = { gridcolor: css("grid"), linecolor: css("line"), zerolinecolor: css("soft"), automargin: true };
    const heat = figure.data[0].type === "heatmap";
    return {
      height: figure.height, autosize: true, margin: { l: 60, r: 12, t: 12, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "inherit", size: 12, color: css("soft") },
      legend: { orientation: "h", y: -0.3 }, hovermode: "closest",
      hoverlabel: { bgcolor: css("page"), bordercolor: css("line"), font: { color: css("ink") } },
      xaxis: { ...axis, ...figure.x, showgrid: !heat },
      yaxis: { ...axis, ...figure.y, showgrid: !heat },
    };
  }

  const draw = (figure) => Plotly.react(
    document.getElementById("plot-" + figure.key), figure.data.map(trace), layout(figure),
    { displaylogo: false, responsive: true },
  );
  const redraw = () => Promise.all(figures.map(draw));

  async function start() {
    try {
      await inflate("plotly");
      await redraw();
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
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
