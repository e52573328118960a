// Distributions: a strip a name, darker where more spans took that long. Keeps their chart.
"use strict";

// What is said beside the mouse has room.
const LEAST_STRIPS = 84;

function durationsOf(all, ink) {
  const strips = $("durations");
  if (!all.durations.length) {
    strips.hidden = true;
    return { chart: null, draw() {} };
  }
  strips.style.height = `${Math.max(LEAST_STRIPS, all.durations.length * 20 + 40)}px`;
  const chart = echarts.init(strips, null, { renderer: "canvas" });
  function draw() {
    const points = [];
    all.durations.forEach((each, line) => {
      for (const [bits, count] of each.bins) points.push([bits, line, count / each.count, count]);
    });
    const least = Math.min(...points.map((point) => point[0]));
    const most = Math.max(...points.map((point) => point[0]));
    chart.setOption({
      animation: false,
      textStyle: { color: ink.text, fontFamily: "system-ui, sans-serif" },
      grid: { left: LEFT, right: RIGHT, top: 4, bottom: 30 },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: ink.paper, borderColor: ink.line,
        textStyle: { color: ink.text, fontSize: 11 },
        formatter: ({ value }) => `${shortened(all.durations[value[1]].name)}\n` +
          `${value[3].toLocaleString("en")} took ${duration(2 ** (value[0] - 1))} to ` +
          `${duration(2 ** value[0])}`,
      },
      xAxis: { type: "value", min: least - 1, max: most, minInterval: 1,
        axisLabel: { color: ink.dim, formatter: (bits) => duration(2 ** bits), hideOverlap: true },
        splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } } },
      yAxis: { type: "value", inverse: true, min: -0.5, max: all.durations.length - 0.5,
        axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: false },
        axisLabel: { color: ink.text, fontSize: 11, width: LEFT - 14, overflow: "truncate",
          customValues: all.durations.map((_, line) => line),
          formatter: (line) => all.durations[Math.round(line)]?.name ?? "" } },
      series: [{ type: "custom", clip: true, data: points, renderItem: (params, api) => {
        const [x1, y] = api.coord([api.value(0), api.value(1)]);
        const [x0] = api.coord([api.value(0) - 1, api.value(1)]);
        const width = Math.max(1, x1 - x0 - 1);
        return { type: "rect", shape: { x: x0, y: y - 7, width, height: 14 },
          style: { fill: ink.mark, opacity: 0.2 + 0.8 * api.value(2) } };
      } }],
    }, { notMerge: true });
  }
  return { chart, draw };
}
