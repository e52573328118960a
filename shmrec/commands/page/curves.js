// Curves of counters below the timeline, over the same time. Keeps their chart.
"use strict";

const CURVES_TOLD = 20;

function curvesOf(all, ink) {
  const box = $("curves");
  const names = [...new Set(all.curves.map((curve) => curve.name))];
  names.sort((one, other) => (other === "process.rss") - (one === "process.rss")
    || one.localeCompare(other));
  const chooser = $("curve");
  for (const name of names) {
    const option = document.createElement("option");
    option.value = option.textContent = name;
    chooser.append(option);
  }
  if (!names.length) {
    $("curves-section").hidden = true;
    return { chart: null, chooser, draw() {} };
  }
  const chart = echarts.init(box, null, { renderer: "canvas" });
  function draw(view) {
    const name = chooser.value;
    const inBytes = name.endsWith(".rss") || name.endsWith("bytes");
    const drawn = all.curves.filter((curve) => curve.name === name);
    const most = drawn.flatMap((curve) => curve.values).reduce((a, b) => Math.max(a, b), 1);
    const step = 2 ** Math.ceil(Math.log2(most / 4));
    const shown = inBytes ? size : (value) => +(+value).toPrecision(4);
    chart.setOption({
      animation: false,
      textStyle: { color: ink.text, fontFamily: "system-ui, sans-serif" },
      grid: { left: LEFT, right: RIGHT, top: 8, bottom: AXIS },
      tooltip: {
        renderMode: "richText", confine: true, trigger: "axis", order: "valueDesc",
        backgroundColor: ink.paper, borderColor: ink.line,
        textStyle: { color: ink.text, fontSize: 11 },
        formatter: (points) => {
          const room = briefLines(box) - 1, told = points.length > room ? room - 1 : points.length;
          const said = points.slice(0, told).map((each) =>
            shortened(`${shown(each.value[1])}: ${each.seriesName}`));
          if (points.length > told) said.push(`and ${points.length - told} more`);
          return [before(points[0].value[0]), ...said].join("\n");
        },
      },
      xAxis: { type: "value", min: view.from, max: view.to,
        axisLabel: { color: ink.dim, formatter: before, hideOverlap: true },
        axisLine: { lineStyle: { color: ink.line } }, splitLine: { show: false } },
      yAxis: { type: "value", axisLabel: { color: ink.dim, formatter: shown },
        // Of bytes the round numbers are powers of two.
        ...(inBytes ? { min: 0, interval: step, max: step * Math.ceil(most / step) } : {}),
        splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } } },
      series: drawn.map((curve) => {
        const process = all.processes[curve.process];
        return {
          type: "line", name: process.title, showSymbol: curve.times.length < 80, symbolSize: 4,
          sampling: "lttb", clip: true,
          lineStyle: { width: process.bad ? 2.5 : 1.2, ...(process.bad ? { color: ink.bad } : {}) },
          itemStyle: process.bad ? { color: ink.bad } : {},
          data: curve.values.map((value, n) => [curve.times[n], value]),
        };
      }),
    }, { notMerge: true });
    // The same for whoever cannot see them.
    const ranges = drawn.filter((curve) => curve.values.length);
    const said = ranges.slice(0, CURVES_TOLD).map((curve) => {
      const values = curve.values.filter((_, n) =>
        curve.times[n] >= view.from && curve.times[n] <= view.to);
      const range = values.length ? `${shown(Math.min(...values))} to ${shown(Math.max(...values))}`
        : "none in this time";
      return `${all.processes[curve.process].title}: ${range}`;
    });
    if (ranges.length > said.length) said.push(`and ${ranges.length - said.length} more`);
    box.setAttribute("aria-label", `${name} over the same time. ${said.join("; ")}`);
  }
  return { chart, chooser, draw };
}
