// Colours: the style sheet's, and one for each name of a span. Keeps whether the page is on its way
// to paper, and what it has worked out since it was last told to `repaint`.
"use strict";

function inkOf(names) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = new Map();
  const ink = { dark, printing: false };
  ink.repaint = () => {
    for (const name of ["text", "dim", "line", "bad", "warn", "mark", "paper"]) {
      ink[name] = style(`--${name}`);
    }
    palette.clear();
  };
  ink.colour = (name) => {
    let found = palette.get(name);
    if (!found) {
      let hash = 0;
      for (const char of names[name]) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
      // Reds are for what went wrong. With commas: the library knows no other form.
      const hue = 40 + (hash % 280);
      found = dark.matches && !ink.printing ? `hsl(${hue}, 45%, 38%)` : `hsl(${hue}, 60%, 78%)`;
      palette.set(name, found);
    }
    return found;
  };
  ink.repaint();
  return ink;
}
