// The page's timeline, curves and distributions. Draws what `drawing.py` packed, through echarts.
// Whatever comes from the recording reaches the page as text on a canvas or as `textContent`.
"use strict";
(async () => {
  const NONE = -1, IN_FLIGHT = 1, LOST = 2, ERROR = 4;
  // Within the margins of A4 and of Letter.
  const PAPER_WIDTH = 670, PAPER_HEIGHT = 880, CURVES_TOLD = 20;
  const ROW = 18, LEFT = 210, RIGHT = 34, AXIS = 26, LEAST_PIXELS = 3, LABEL_PIXELS = 28;
  const FIRST_WINDOW = 60e9, STEP = 0.2, ZOOM = 0.6, MARKS_SHOWN = 3000, MATCHES = 200000;
  const $ = (id) => document.getElementById(id);
  const packed = $("data");
  if (!packed) return;

  const say = (text) => { $("timeline-note").textContent = text; };

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  let all;
  try {
    all = await unpacked(packed.textContent.trim());
  } catch (error) {
    say(`The timeline needs a newer browser (${error.name}). Everything else is below.`);
    return;
  }
  packed.remove();

  // Columns: differences become times before and after the snapshot, whose ticks are round.
  const summed = (deltas) => {
    const times = new Float64Array(deltas.length);
    let now = -all.at;
    for (let i = 0; i < deltas.length; i++) times[i] = now += deltas[i];
    return times;
  };
  for (const row of all.rows) {
    row.begins = summed(row.begins);
    row.lengths = Float64Array.from(row.lengths);
  }
  for (const curve of all.curves) curve.times = summed(curve.times);

  // Lines from top to bottom: a process, then its rows.
  const lines = [];
  all.processes.forEach((process, place) => {
    process.line = lines.length;
    lines.push({ process: place, row: null, title: process.title });
    for (let n = process.rows; n < process.rows + process.count; n++) {
      const row = all.rows[n];
      row.line = lines.length;
      lines.push({ process: place, row, title: row.depth ? "" : row.title });
    }
  });
  const marks = all.marks.map(([time, process, kind, text]) => ({ time: time - all.at, process, kind, text }));

  // Words.
  const duration = (ns) => {
    if (ns < 0) return `-${duration(-ns)}`;
    if (ns < 1e3) return `${Math.round(ns)} ns`;
    if (ns < 1e6) return `${+(ns / 1e3).toPrecision(3)} µs`;
    if (ns < 1e9) return `${+(ns / 1e6).toPrecision(3)} ms`;
    return `${+(ns / 1e9).toPrecision(4)} s`;
  };
  const before = (time) => {
    return Math.abs(time) < 1 ? "0" : `${time < 0 ? "-" : "+"}${duration(Math.abs(time))}`;
  };
  const clock = (time) => {
    const date = new Date(all.wall_ms + (time + all.at) / 1e6);
    return Number.isNaN(date.valueOf()) ? "" : `${date.toISOString().slice(11, 23)} UTC`;
  };
  const size = (bytes) => {
    let unit = 0;
    while (Math.abs(bytes) >= 1024 && unit < 4) { bytes /= 1024; unit++; }
    return `${+bytes.toPrecision(4)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][unit]}`;
  };

  // Colours.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let ink = {};
  const palette = new Map();
  const repaint = () => {
    ink = {};
    for (const name of ["text", "dim", "line", "bad", "warn", "mark", "paper"]) {
      ink[name] = style(`--${name}`);
    }
    palette.clear();
  };
  const colour = (name) => {
    let found = palette.get(name);
    if (!found) {
      let hash = 0;
      for (const char of all.names[name]) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
      // Reds are for what went wrong.
      const hue = 40 + (hash % 280);
      found = dark.matches && !printing ? `hsl(${hue} 45% 38%)` : `hsl(${hue} 60% 78%)`;
      palette.set(name, found);
    }
    return found;
  };
  repaint();

  // What is seen of a row: slices that a pixel tells apart; those that it does not, as one.
  function visible(row, from, to, perPixel, found) {
    const { begins, lengths } = row;
    let low = 0, high = begins.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (begins[middle] < from) low = middle + 1; else high = middle;
    }
    let n = low > 0 ? low - 1 : 0;
    const least = LEAST_PIXELS * perPixel;
    while (n < begins.length && begins[n] <= to) {
      const begin = begins[n];
      let end = begin + lengths[n];
      if (end < from) { n++; continue; }
      let many = 1;
      if (end - begin < least) {
        // The next one that begins at least so many pixels later.
        let next = n + 1, far = begins.length;
        const limit = begin + least;
        while (next < far) {
          const middle = (next + far) >> 1;
          if (begins[middle] < limit) next = middle + 1; else far = middle;
        }
        // Rows do not overlap, so that only the last of them can be long: it stays what it is.
        if (next - n > 1 && lengths[next - 1] >= least) next--;
        many = next - n;
        end = Math.max(end, begins[next - 1] + lengths[next - 1]);
        found.push([begin, Math.min(end, Math.max(limit, end)), row, n, many]);
        n = next;
      } else {
        found.push([begin, end, row, n, 1]);
        n++;
      }
    }
  }

  const whole = { from: -all.at, to: Math.max(1 - all.at, all.end - all.at) };
  const span = { from: Math.max(whole.from, whole.to - FIRST_WINDOW), to: whole.to };
  const box = $("timeline"), curvesBox = $("curves");
  const chart = echarts.init(box, null, { renderer: "canvas" });
  const state = { wanted: null, matches: [], at: -1, picked: null, top: 0 };
  const shownLines = () => Math.max(1, Math.floor((box.clientHeight - AXIS - 8) / ROW));

  function data() {
    const width = Math.max(50, box.clientWidth - LEFT - RIGHT);
    const perPixel = (span.to - span.from) / width;
    const slices = [], bottom = Math.min(lines.length, state.top + shownLines() + 1);
    for (let n = state.top; n < bottom; n++) {
      if (lines[n].row) visible(lines[n].row, span.from, span.to, perPixel, slices);
    }
    const moments = [];
    let last = new Map();
    for (const mark of marks) {
      if (mark.time < span.from || mark.time > span.to || moments.length > MARKS_SHOWN) continue;
      const line = mark.process === NONE ? NONE : all.processes[mark.process].line;
      if (mark.kind !== "death" && mark.time - (last.get(line) ?? -1e18) < perPixel * 2) continue;
      if (mark.kind !== "death") last.set(line, mark.time);
      moments.push([mark.time, line, mark]);
    }
    return { slices, moments };
  }

  let drawn = { slices: [], moments: [] };
  const sliceItem = (params, api) => {
    const item = drawn.slices[params.dataIndex];
    if (!item) return null;
    const [begin, end, row, n, many] = item;
    const [x0, y] = api.coord([Math.max(begin, span.from), row.line]);
    const [x1] = api.coord([Math.min(end, span.to), row.line]);
    const height = ROW - 3, width = Math.max(1.5, x1 - x0);
    const name = row.names[n], flags = row.flags[n];
    const faded = state.wanted && !state.wanted.has(name) && many === 1;
    const picked = state.picked && state.picked.row === row && state.picked.n >= n &&
      state.picked.n < n + many;
    const shape = { x: x0, y: y - height / 2, width, height, r: width > 6 ? 2 : 0 };
    const found = [{
      type: "rect",
      shape,
      style: {
        fill: many > 1 ? ink.dim : flags & ERROR ? ink.bad : colour(name),
        opacity: faded ? 0.25 : many > 1 ? 0.55 : 1,
        stroke: picked ? ink.text : flags & IN_FLIGHT ? ink.bad : ink.paper,
        lineWidth: picked ? 2.5 : flags & IN_FLIGHT ? 2 : width > 4 ? 0.5 : 0,
        lineDash: flags & LOST ? [3, 2] : null,
      },
    }];
    if (width > LABEL_PIXELS && many === 1) {
      found.push({
        type: "text",
        silent: true,
        style: {
          text: all.names[name],
          x: x0 + 4,
          y,
          fill: ink.text,
          opacity: faded ? 0.4 : 1,
          verticalAlign: "middle",
          width: width - 8,
          overflow: "truncate",
          font: "11px system-ui, sans-serif",
        },
      });
    }
    return { type: "group", children: found };
  };
  const momentItem = (params, api) => {
    const item = drawn.moments[params.dataIndex];
    if (!item) return null;
    const [time, line, mark] = item;
    const grid = params.coordSys;
    const [x, y] = api.coord([time, line === NONE ? state.top : line]);
    if (line === NONE || mark.kind === "death") {
      const rows = mark.process === NONE ? lines.length : all.processes[mark.process].count + 1;
      const upper = line === NONE ? grid.y : Math.max(grid.y, y - ROW / 2);
      const lower = line === NONE ? grid.y + grid.height
        : Math.min(grid.y + grid.height, y + (rows - 0.5) * ROW);
      if (lower <= upper) return null;
      const paint = mark.kind === "death" ? ink.bad : ink.mark;
      return { type: "group", children: [
        { type: "line", shape: { x1: x, y1: upper, x2: x, y2: lower },
          style: { stroke: paint, lineWidth: 1.5, lineDash: line === NONE ? [4, 3] : null } },
        { type: "text", silent: true, style: {
          text: mark.text, x: x - 4, y: upper + 2, align: "right", fill: paint, width: 360,
          overflow: "truncate", font: "bold 11px system-ui, sans-serif" } },
      ] };
    }
    if (y < grid.y || y > grid.y + grid.height) return null;
    const bad = mark.kind === "exception" || mark.kind === "error";
    const r = bad ? 5 : 3;
    return {
      type: "polygon",
      shape: { points: [[x, y - r], [x + r, y], [x, y + r], [x - r, y]] },
      style: { fill: bad ? ink.bad : mark.kind === "log" ? ink.warn : ink.dim },
    };
  };

  const told = (row, n) => {
    const text = row.texts[n];
    return [
      ["name", all.names[row.names[n]]],
      ["took", row.flags[n] & IN_FLIGHT ? `in flight for ${duration(row.lengths[n])}`
        : row.flags[n] & LOST ? "its end was lost" : duration(row.lengths[n])],
      ["began", `${clock(row.begins[n])}, ${before(row.begins[n])} from the snapshot`],
      ["thread", row.title],
      ["process", all.processes[row.process].title],
      ...(text === NONE ? [] : [["arguments", all.texts[text]]]),
    ];
  };
  const brief = (pairs) => pairs.map(([key, value]) => `${key}: ${value}`).join("\n");

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
        textStyle: { color: ink.text, fontSize: 11, width: 420, overflow: "break" },
        formatter: (params) => {
          if (params.seriesIndex) {
            const mark = drawn.moments[params.dataIndex]?.[2];
            return mark ? `${mark.kind} ${before(mark.time)}\n${mark.text}` : "";
          }
          const item = drawn.slices[params.dataIndex];
          if (!item) return "";
          const [begin, end, row, n, many] = item;
          if (many > 1) return `${many.toLocaleString("en")} slices in ${duration(end - begin)}`;
          return brief(told(row, n));
        },
      },
      xAxis: {
        type: "value",
        min: span.from,
        max: span.to,
        axisLabel: { color: ink.dim, formatter: before, hideOverlap: true },
        axisLine: { lineStyle: { color: ink.line } },
        splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } },
      },
      yAxis: {
        type: "value",
        inverse: true,
        min: state.top - 0.5,
        max: state.top + shownLines() - 0.5,
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
          customValues: lines
            .map((_, n) => n)
            .slice(state.top, state.top + shownLines()),
          formatter: (value) => {
            const line = lines[Math.round(value)];
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
        { type: "custom", renderItem: sliceItem, clip: true, data: drawn.slices.map((item) =>
          [item[0], item[2].line]) },
        { type: "custom", renderItem: momentItem, clip: true, data: drawn.moments.map((item) =>
          [item[0], item[1] === NONE ? state.top : item[1]]) },
      ],
    };
  }

  let asked = false;
  const drawNow = () => {
    asked = false;
    const scroll = $("rows");
    scroll.max = Math.max(0, lines.length - shownLines());
    scroll.value = state.top;
    if (scroll.hidden !== !+scroll.max) {
      scroll.hidden = !+scroll.max;
      chart.resize();
    }
    drawn = data();
    chart.setOption(options(), { notMerge: true, lazyUpdate: false });
    drawCurves();
  };
  const draw = () => {
    if (!asked) requestAnimationFrame(drawNow);
    asked = true;
  };

  // Moving about.
  const move = (from, to) => {
    const least = 100, most = whole.to - whole.from;
    const length = Math.min(most, Math.max(least, to - from));
    const begin = Math.min(Math.max(whole.from, from), whole.to - length);
    span.from = begin;
    span.to = begin + length;
    draw();
  };
  const pan = (share) => {
    const by = (span.to - span.from) * share;
    move(span.from + by, span.to + by);
  };
  const zoom = (factor, around = (span.from + span.to) / 2) => {
    move(around - (around - span.from) * factor, around + (span.to - around) * factor);
  };
  const scroll = (by) => {
    state.top = Math.min(Math.max(0, state.top + by), Math.max(0, lines.length - shownLines()));
    draw();
  };
  const reveal = (row, n) => {
    const begin = row.begins[n], end = begin + row.lengths[n];
    if (begin < span.from || end > span.to || (end - begin) * 50 < span.to - span.from) {
      const room = Math.max(end - begin, 1000) * 4;
      move(begin - room, end + room);
    }
    if (row.line < state.top || row.line >= state.top + shownLines()) {
      state.top = Math.max(0, Math.min(row.line - 2, lines.length - shownLines()));
    }
  };
  const pick = (row, n) => {
    state.picked = row ? { row, n } : null;
    const list = $("details");
    list.replaceChildren();
    for (const [key, value] of row ? told(row, n) : []) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = key;
      text.textContent = value;
      list.append(term, text);
    }
    $("details-empty").hidden = Boolean(row);
    draw();
  };
  const nearest = (row, time) => {
    let best = 0, least = Infinity;
    for (let n = 0; n < row.begins.length; n++) {
      const away = Math.max(row.begins[n] - time, time - row.begins[n] - row.lengths[n], 0);
      if (away < least) { least = away; best = n; }
      if (row.begins[n] > time + least) break;
    }
    return best;
  };
  const step = (by) => {
    if (!state.picked) return pickFirst();
    const { row, n } = state.picked, next = n + by;
    if (next >= 0 && next < row.begins.length) { reveal(row, next); pick(row, next); }
  };
  const climb = (by) => {
    if (!state.picked) return pickFirst();
    const { row, n } = state.picked, middle = row.begins[n] + row.lengths[n] / 2;
    for (let line = row.line + by; lines[line]; line += by) {
      if (!lines[line].row || !lines[line].row.begins.length) continue;
      const found = nearest(lines[line].row, middle);
      reveal(lines[line].row, found);
      pick(lines[line].row, found);
      return;
    }
  };
  const pickFirst = () => {
    const bad = lines.find((line) => line.row && all.processes[line.process].bad);
    const line = bad || lines.find((each) => each.row);
    if (line) { const n = line.row.begins.length - 1; reveal(line.row, n); pick(line.row, n); }
  };

  // Searching.
  const search = (text) => {
    const wanted = text.trim().toLowerCase();
    state.wanted = null;
    state.matches = [];
    state.at = -1;
    if (wanted) {
      state.wanted = new Set();
      all.names.forEach((name, place) => {
        if (name.toLowerCase().includes(wanted)) state.wanted.add(place);
      });
      for (const row of all.rows) {
        for (let n = 0; n < row.names.length && state.matches.length < MATCHES; n++) {
          if (state.wanted.has(row.names[n])) state.matches.push([row.begins[n], row, n]);
        }
      }
      state.matches.sort((one, other) => one[0] - other[0]);
      const found = state.matches.length.toLocaleString("en");
      $("found").textContent = `${found} found`;
    } else {
      $("found").textContent = "";
    }
    draw();
  };
  const next = (by) => {
    const count = state.matches.length;
    if (!count) return;
    state.at = state.at < 0 ? (by > 0 ? 0 : count - 1) : (state.at + by + count) % count;
    const [, row, n] = state.matches[state.at];
    reveal(row, n);
    pick(row, n);
    $("found").textContent = `${(state.at + 1).toLocaleString("en")} of ${count.toLocaleString("en")}`;
  };

  // Curves below, over the same time.
  const names = [...new Set(all.curves.map((curve) => curve.name))];
  names.sort((one, other) => (other === "process.rss") - (one === "process.rss")
    || one.localeCompare(other));
  const chooser = $("curve");
  for (const name of names) {
    const option = document.createElement("option");
    option.value = option.textContent = name;
    chooser.append(option);
  }
  let curves = null;
  if (names.length) {
    curves = echarts.init(curvesBox, null, { renderer: "canvas" });
  } else {
    $("curves-section").hidden = true;
  }
  function drawCurves() {
    if (!curves) return;
    const name = chooser.value;
    const inBytes = name.endsWith(".rss") || name.endsWith("bytes");
    const shown = inBytes ? size : (value) => +(+value).toPrecision(4);
    curves.setOption({
      animation: false,
      textStyle: { color: ink.text, fontFamily: "system-ui, sans-serif" },
      grid: { left: LEFT, right: RIGHT, top: 8, bottom: AXIS },
      tooltip: {
        renderMode: "richText", confine: true, trigger: "axis", order: "valueDesc",
        backgroundColor: ink.paper, borderColor: ink.line,
        textStyle: { color: ink.text, fontSize: 11 },
        formatter: (all) => [before(all[0].value[0]), ...all.slice(0, 12).map((each) =>
          `${each.seriesName}: ${shown(each.value[1])}`)].join("\n"),
      },
      xAxis: { type: "value", min: span.from, max: span.to,
        axisLabel: { color: ink.dim, formatter: before, hideOverlap: true },
        axisLine: { lineStyle: { color: ink.line } }, splitLine: { show: false } },
      yAxis: { type: "value", axisLabel: { color: ink.dim, formatter: shown },
        splitLine: { lineStyle: { color: ink.line, opacity: 0.5 } } },
      series: all.curves.filter((curve) => curve.name === name).map((curve) => {
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
    const ranges = all.curves.filter((curve) => curve.name === name && curve.values.length);
    const told = ranges.slice(0, CURVES_TOLD).map((curve) => {
      const values = curve.values.filter((_, n) => curve.times[n] >= span.from && curve.times[n] <= span.to);
      const range = values.length ? `${shown(Math.min(...values))} to ${shown(Math.max(...values))}`
        : "none in this time";
      return `${all.processes[curve.process].title}: ${range}`;
    });
    if (ranges.length > told.length) told.push(`and ${ranges.length - told.length} more`);
    curvesBox.setAttribute("aria-label", `${name} over the same time. ${told.join("; ")}`);
  }

  // Distributions: a strip a name, darker where more spans took that long.
  const strips = $("durations");
  let durations = null;
  if (all.durations.length) {
    strips.style.height = `${all.durations.length * 20 + 40}px`;
    durations = echarts.init(strips, null, { renderer: "canvas" });
  } else {
    strips.hidden = true;
  }
  function drawDurations() {
    if (!durations) return;
    const points = [];
    all.durations.forEach((each, line) => {
      for (const [bits, count] of each.bins) points.push([bits, line, count / each.count, count]);
    });
    const least = Math.min(...points.map((point) => point[0]));
    const most = Math.max(...points.map((point) => point[0]));
    durations.setOption({
      animation: false,
      textStyle: { color: ink.text, fontFamily: "system-ui, sans-serif" },
      grid: { left: LEFT, right: RIGHT, top: 4, bottom: 30 },
      tooltip: {
        renderMode: "richText", confine: true, backgroundColor: ink.paper, borderColor: ink.line,
        textStyle: { color: ink.text, fontSize: 11 },
        formatter: ({ value }) => `${all.durations[value[1]].name}\n` +
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
        return { type: "rect", shape: { x: x0, y: y - 7, width: Math.max(1, x1 - x0 - 1), height: 14 },
          style: { fill: ink.mark, opacity: 0.2 + 0.8 * api.value(2) } };
      } }],
    }, { notMerge: true });
  }

  // People.
  box.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;
    event.preventDefault();
    if (event.shiftKey) return pan((event.deltaY || event.deltaX) / 1000);
    const width = box.clientWidth - LEFT - RIGHT;
    const share = Math.min(1, Math.max(0, (event.offsetX - LEFT) / width));
    zoom(Math.exp(event.deltaY / 400), span.from + share * (span.to - span.from));
  }, { passive: false });
  let drag = null;
  box.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, top: state.top, ...span, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
    drag.moved = true;
    const by = dx / (box.clientWidth - LEFT - RIGHT) * (drag.to - drag.from);
    state.top = Math.min(Math.max(0, drag.top - Math.round(dy / ROW)),
      Math.max(0, lines.length - shownLines()));
    move(drag.from - by, drag.to - by);
  });
  window.addEventListener("pointerup", () => { drag = null; });
  chart.on("click", (params) => {
    if (params.seriesIndex) return;
    const item = drawn.slices[params.dataIndex];
    if (!item) return;
    const [begin, end, row, n, many] = item;
    if (many > 1) move(begin - (end - begin), end + (end - begin)); else pick(row, n);
  });
  const keys = {
    ArrowLeft: () => pan(-STEP), ArrowRight: () => pan(STEP),
    ArrowUp: () => scroll(-3), ArrowDown: () => scroll(3),
    "+": () => zoom(ZOOM), "=": () => zoom(ZOOM), "-": () => zoom(1 / ZOOM),
    0: () => move(whole.from, whole.to), Home: () => move(whole.from, whole.to),
    ",": () => step(-1), ".": () => step(1), "<": () => climb(-1), ">": () => climb(1),
    n: () => next(1), p: () => next(-1),
    Enter: () => state.picked && reveal(state.picked.row, state.picked.n),
    Escape: () => pick(null),
    "/": () => $("search").focus(),
  };
  box.addEventListener("keydown", (event) => {
    const act = !event.ctrlKey && !event.metaKey && !event.altKey && keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  $("search").addEventListener("input", (event) => search(event.target.value));
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") box.focus();
  });
  for (const [id, act] of Object.entries({
    "zoom-in": () => zoom(ZOOM), "zoom-out": () => zoom(1 / ZOOM), earlier: () => pan(-STEP),
    later: () => pan(STEP), fit: () => move(whole.from, whole.to), next: () => next(1),
    previous: () => next(-1),
  })) $(id).addEventListener("click", act);
  $("rows").addEventListener("input", (event) => { state.top = +event.target.value; draw(); });
  chooser.addEventListener("change", draw);
  const resized = () => {
    const most = printing ? PAPER_HEIGHT : Math.max(240, innerHeight * 0.6);
    box.style.height = `${Math.min(lines.length * ROW + AXIS + 12, most)}px`;
    state.top = Math.min(state.top, Math.max(0, lines.length - shownLines()));
    for (const each of [chart, curves, durations]) {
      if (!each) continue;
      each.getDom().style.width = printing ? `${PAPER_WIDTH}px` : "";
      each.resize();
    }
    drawNow();
    drawDurations();
  };
  window.addEventListener("resize", () => { if (!printing) resized(); });

  // Printing. What is on paper is drawn before the page has the paper's width or colours, and at
  // once: no frame comes in between.
  let paused = null;
  window.addEventListener("beforeprint", () => {
    if (printing) return;
    printing = true;
    const closed = [...document.querySelectorAll("details:not([open])")];
    paused = { closed, top: state.top };
    for (const each of closed) each.open = true;
    document.documentElement.dataset.paper = "yes";
    repaint();
    resized();
    if (shownLines() < lines.length) {
      say(`${counted} On paper: lines ${state.top + 1} to ${state.top + shownLines()} of ` +
        `${lines.length}.`);
    }
  });
  window.addEventListener("afterprint", () => {
    if (!printing) return;
    printing = false;
    for (const each of paused.closed) each.open = false;
    delete document.documentElement.dataset.paper;
    state.top = paused.top;
    repaint();
    resized();
    say(counted);
  });
  dark.addEventListener("change", () => { repaint(); resized(); });
  const count = all.rows.reduce((sum, row) => sum + row.begins.length, 0);
  const counted = `${count.toLocaleString("en")} spans, ` +
    `${marks.length.toLocaleString("en")} moments, ${all.processes.length} processes.`;
  say(counted);
  $("chart-section").hidden = false;
  resized();
  // For tests, and for whoever prints: the first drawing is done.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = "yes";
  }));
})();
