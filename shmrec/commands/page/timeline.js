// The timeline: its chart, and where it looks. Keeps the view, which is the window of time, the
// first line, what is searched for and selected, and what was drawn of it.
"use strict";

const FIRST_WINDOW = 60e9;

function timelineOf(all, ink, alsoDraw) {
  const view = {
    from: Math.max(all.whole.from, all.whole.to - FIRST_WINDOW),
    to: all.whole.to,
    top: 0,
    wanted: null,
    picked: null,
    drawn: { slices: [], moments: [] },
  };
  const box = $("timeline");
  const chart = echarts.init(box, null, { renderer: "canvas" });
  const shapes = shapesOf(all, ink, view);
  const shownLines = () => Math.max(1, Math.floor((box.clientHeight - AXIS - 8) / ROW));
  const width = () => Math.max(50, box.clientWidth - LEFT - RIGHT);

  function options() {
    return {
      animation: false,
      aria: { enabled: false },
      textStyle: { color: ink.text, fontFamily: "system-ui, sans-serif" },
      grid: { left: LEFT, right: RIGHT, top: 4, bottom: AXIS },
      tooltip: {
        // On the canvas: what was recorded never becomes markup.
        renderMode: "richText",
        confine: true,
        backgroundColor: ink.paper,
        borderColor: ink.line,
        textStyle: { color: ink.text, fontSize: 11 },
        formatter: (params) => {
          if (params.seriesIndex) {
            const mark = view.drawn.moments[params.dataIndex]?.[2];
            return mark ? `${mark.kind} ${before(mark.time)}\n${shortened(mark.text)}` : "";
          }
          const item = view.drawn.slices[params.dataIndex];
          if (!item) return "";
          const [begin, end, row, n, many] = item;
          if (many > 1) return `${many.toLocaleString("en")} slices in ${duration(end - begin)}`;
          return brief(told(all, row, n));
        },
      },
      xAxis: {
        type: "value",
        min: view.from,
        max: view.to,
        axisLabel: { color: ink.dim, formatter: before, hideOverlap: true },
        axisLine: { lineStyle: { color: ink.line } },
        splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } },
      },
      yAxis: {
        type: "value",
        inverse: true,
        min: view.top - 0.5,
        max: view.top + shownLines() - 0.5,
        interval: 1,
        axisLine: { show: false },
        axisTick: { show: false },
        splitLine: { show: false },
        axisLabel: {
          color: ink.text,
          fontSize: 11,
          width: LEFT - 14,
          overflow: "truncate",
          showMinLabel: true,
          showMaxLabel: true,
          customValues: all.lines
            .map((_, n) => n)
            .slice(view.top, view.top + shownLines()),
          formatter: (value) => {
            const line = all.lines[Math.round(value)];
            if (!line) return "";
            const title = line.title.replace(/[{}|]/g, " ");
            if (line.row) return title;
            return all.processes[line.process].bad ? `{bad|${title}}` : `{strong|${title}}`;
          },
          rich: {
            bad: { color: ink.bad, fontWeight: "bold", fontSize: 11 },
            strong: { color: ink.text, fontWeight: "bold", fontSize: 11 },
          },
        },
      },
      series: [
        { type: "custom", renderItem: shapes.sliceItem, clip: true,
          data: view.drawn.slices.map(([begin, , row]) => [begin, row.line]) },
        { type: "custom", renderItem: shapes.momentItem, clip: true,
          data: view.drawn.moments.map(([time, line]) =>
            [time, line === NONE ? view.top : line]) },
      ],
    };
  }

  let asked = false;
  const drawNow = () => {
    asked = false;
    const scroll = $("rows");
    scroll.max = Math.max(0, all.lines.length - shownLines());
    scroll.value = view.top;
    if (scroll.hidden !== !+scroll.max) {
      scroll.hidden = !+scroll.max;
      chart.resize();
    }
    view.drawn = shapes.found(width(), shownLines());
    chart.setOption(options(), { notMerge: true, lazyUpdate: false });
    alsoDraw(view);
  };
  const draw = () => {
    if (!asked) requestAnimationFrame(drawNow);
    asked = true;
  };

  // What is drawn at a place. Not by the chart's own elements: each drawing makes them anew, so
  // that where one comes between a button's going down and up, they know of no click.
  const at = (x, y) => {
    if (!chart.containPixel("grid", [x, y])) return undefined;
    const [time, line] = chart.convertFromPixel("grid", [x, y]);
    const least = LEAST_WIDTH * (view.to - view.from) / width();
    return view.drawn.slices.findLast(([begin, end, row]) =>
      Math.abs(line - row.line) * ROW <= (ROW - 3) / 2 &&
      time >= begin && time <= Math.max(end, begin + least));
  };
  return { view, box, chart, shownLines, width, draw, drawNow, at };
}
