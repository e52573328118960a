// What is said of times, sizes and spans: text only, for a canvas or for `textContent`, because it
// may come from the recording. Also how an element is found. Keeps nothing.
"use strict";

const $ = (id) => document.getElementById(id);

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
const clock = (all, time) => {
  const date = new Date(all.wall_ms + (time + all.at) / 1e6);
  return Number.isNaN(date.valueOf()) ? "" : `${date.toISOString().slice(11, 23)} UTC`;
};
const size = (bytes) => {
  let unit = 0;
  while (Math.abs(bytes) >= 1024 && unit < 4) { bytes /= 1024; unit++; }
  return `${+bytes.toPrecision(4)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][unit]}`;
};

const told = (all, row, n) => {
  const text = row.texts[n];
  return [
    ["name", all.names[row.names[n]]],
    ["took", row.flags[n] & IN_FLIGHT ? `in flight for ${duration(row.lengths[n])}`
      : row.flags[n] & LOST ? "its end was lost" : duration(row.lengths[n])],
    ["began", `${clock(all, row.begins[n])}, ${before(row.begins[n])} from the snapshot`],
    ["thread", row.title],
    ["process", all.processes[row.process].title],
    ...(text === NONE ? [] : [["arguments", all.texts[text]]]),
  ];
};
// What is said beside the mouse: the library breaks no line of it, and has its own height of one.
const BRIEF_CHARACTERS = 60, BRIEF_LINE = 22, BRIEF_EDGES = 24;
const briefLines = (box) => Math.floor((box.clientHeight - BRIEF_EDGES) / BRIEF_LINE);
const shortened = (text) =>
  text.length > BRIEF_CHARACTERS ? `${text.slice(0, BRIEF_CHARACTERS - 1)}…` : text;
const brief = (pairs) => pairs.map(([key, value]) => `${key}: ${shortened(value)}`).join("\n");
