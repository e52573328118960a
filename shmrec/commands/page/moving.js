// Moving about in the timeline, by time, by line, from span to span and from match to match. Keeps
// the matches of the search and which of them is shown.
"use strict";

const MATCHES = 200000;

function movingIn(all, timeline) {
  const { view, shownLines, draw } = timeline;
  let matches = [], shown = -1;

  const move = (from, to) => {
    const least = 100, most = all.whole.to - all.whole.from;
    const length = Math.min(most, Math.max(least, to - from));
    const begin = Math.min(Math.max(all.whole.from, from), all.whole.to - length);
    view.from = begin;
    view.to = begin + length;
    draw();
  };
  const pan = (share) => {
    const by = (view.to - view.from) * share;
    move(view.from + by, view.to + by);
  };
  const zoom = (factor, around = (view.from + view.to) / 2) => {
    move(around - (around - view.from) * factor, around + (view.to - around) * factor);
  };
  const scrollTo = (line) => {
    view.top = Math.min(Math.max(0, line), Math.max(0, all.lines.length - shownLines()));
    draw();
  };
  const reveal = (row, n) => {
    const begin = row.begins[n], end = begin + row.lengths[n];
    if (begin < view.from || end > view.to || (end - begin) * 50 < view.to - view.from) {
      const room = Math.max(end - begin, 1000) * 4;
      move(begin - room, end + room);
    }
    if (row.line < view.top || row.line >= view.top + shownLines()) {
      view.top = Math.max(0, Math.min(row.line - 2, all.lines.length - shownLines()));
    }
  };
  const pick = (row, n) => {
    view.picked = row ? { row, n } : null;
    const list = $("details");
    list.replaceChildren();
    for (const [key, value] of row ? told(all, row, n) : []) {
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
    if (!view.picked) return pickFirst();
    const { row, n } = view.picked, next = n + by;
    if (next >= 0 && next < row.begins.length) { reveal(row, next); pick(row, next); }
  };
  const climb = (by) => {
    if (!view.picked) return pickFirst();
    const { row, n } = view.picked, middle = row.begins[n] + row.lengths[n] / 2;
    for (let line = row.line + by; all.lines[line]; line += by) {
      if (!all.lines[line].row || !all.lines[line].row.begins.length) continue;
      const found = nearest(all.lines[line].row, middle);
      reveal(all.lines[line].row, found);
      pick(all.lines[line].row, found);
      return;
    }
  };
  const pickFirst = () => {
    const bad = all.lines.find((line) => line.row && all.processes[line.process].bad);
    const line = bad || all.lines.find((each) => each.row);
    if (line) { const n = line.row.begins.length - 1; reveal(line.row, n); pick(line.row, n); }
  };

  // Searching.
  const search = (text) => {
    const wanted = text.trim().toLowerCase();
    view.wanted = null;
    matches = [];
    shown = -1;
    if (wanted) {
      view.wanted = new Set();
      all.names.forEach((name, place) => {
        if (name.toLowerCase().includes(wanted)) view.wanted.add(place);
      });
      for (const row of all.rows) {
        for (let n = 0; n < row.names.length && matches.length < MATCHES; n++) {
          if (view.wanted.has(row.names[n])) matches.push([row.begins[n], row, n]);
        }
      }
      matches.sort((one, other) => one[0] - other[0]);
      const found = matches.length.toLocaleString("en");
      $("found").textContent = `${found} found`;
    } else {
      $("found").textContent = "";
    }
    draw();
  };
  const next = (by) => {
    const count = matches.length;
    if (!count) return;
    shown = shown < 0 ? (by > 0 ? 0 : count - 1) : (shown + by + count) % count;
    const [, row, n] = matches[shown];
    reveal(row, n);
    pick(row, n);
    $("found").textContent = `${(shown + 1).toLocaleString("en")} of ${count.toLocaleString("en")}`;
  };

  return { move, pan, zoom, scrollTo, reveal, pick, step, climb, search, next };
}
