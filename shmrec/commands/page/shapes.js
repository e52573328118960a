// The timeline's spans and moments as shapes: which of them a pixel tells apart, and what each
// looks like. Keeps nothing; what was last found is in the view.
"use strict";

const ROW = 18, LEFT = 210, RIGHT = 34, AXIS = 26;
const LEAST_PIXELS = 3, LEAST_WIDTH = 1.5, LABEL_PIXELS = 28, MARKS_SHOWN = 3000;

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

function shapesOf(all, ink, view) {
  function found(width, shown) {
    const perPixel = (view.to - view.from) / width;
    const slices = [], bottom = Math.min(all.lines.length, view.top + shown + 1);
    for (let n = view.top; n < bottom; n++) {
      if (all.lines[n].row) visible(all.lines[n].row, view.from, view.to, perPixel, slices);
    }
    const moments = [];
    const last = new Map();
    for (const mark of all.marks) {
      if (mark.time < view.from || mark.time > view.to || moments.length > MARKS_SHOWN) continue;
      const line = mark.process === NONE ? NONE : all.processes[mark.process].line;
      if (mark.kind !== "death" && mark.time - (last.get(line) ?? -1e18) < perPixel * 2) continue;
      if (mark.kind !== "death") last.set(line, mark.time);
      moments.push([mark.time, line, mark]);
    }
    return { slices, moments };
  }

  const sliceItem = (params, api) => {
    const item = view.drawn.slices[params.dataIndex];
    if (!item) return null;
    const [begin, end, row, n, many] = item;
    const [x0, y] = api.coord([Math.max(begin, view.from), row.line]);
    const [x1] = api.coord([Math.min(end, view.to), row.line]);
    const height = ROW - 3, width = Math.max(LEAST_WIDTH, x1 - x0);
    const name = row.names[n], flags = row.flags[n];
    const faded = view.wanted && !view.wanted.has(name) && many === 1;
    const picked = view.picked && view.picked.row === row && view.picked.n >= n &&
      view.picked.n < n + many;
    const shape = { x: x0, y: y - height / 2, width, height, r: width > 6 ? 2 : 0 };
    const found = [{
      type: "rect",
      shape,
      style: {
        fill: many > 1 ? ink.dim : flags & ERROR ? ink.bad : ink.colour(name),
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
    const item = view.drawn.moments[params.dataIndex];
    if (!item) return null;
    const [time, line, mark] = item;
    const grid = params.coordSys;
    const [x, y] = api.coord([time, line === NONE ? view.top : line]);
    if (line === NONE || mark.kind === "death") {
      const rows = mark.process === NONE ? all.lines.length : all.processes[mark.process].count + 1;
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
  return { found, sliceItem, momentItem };
}
