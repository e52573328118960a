// The recording as `drawing.py` packed it, made ready to be drawn: differences become times before
// and after the snapshot, processes and their rows become lines from top to bottom. Keeps nothing:
// what it returns is everybody's, and nobody changes it.
"use strict";

const NONE = -1, IN_FLIGHT = 1, LOST = 2, ERROR = 4;

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function recordingOf(all) {
  // The snapshot's time is 0, so that ticks are round.
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
  const marks = all.marks.map(([time, process, kind, text]) =>
    ({ time: time - all.at, process, kind, text }));
  const whole = { from: -all.at, to: Math.max(1 - all.at, all.end - all.at) };
  return { ...all, lines, marks, whole };
}
