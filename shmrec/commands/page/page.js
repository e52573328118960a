// The page's scripts begin here, when all others are there: what people do with the timeline, the
// size of what is drawn, and paper. Keeps what is being dragged, and how the screen was.
"use strict";

// Within the margins of A4 and of Letter.
const PAPER_WIDTH = 670, PAPER_HEIGHT = 880;
// What is said beside the mouse has room.
const LEAST_HEIGHT = 180;
const STEP = 0.2, ZOOM = 0.6, STILL_PIXELS = 4;

function listenTo(all, timeline, moving) {
  const { view, box, width, draw } = timeline;
  const { move, pan, zoom, scrollTo, reveal, pick, step, climb, search, next } = moving;
  box.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;
    event.preventDefault();
    if (event.shiftKey) return pan((event.deltaY || event.deltaX) / 1000);
    const share = Math.min(1, Math.max(0, (event.offsetX - LEFT) / width()));
    zoom(Math.exp(event.deltaY / 400), view.from + share * (view.to - view.from));
  }, { passive: false });

  let drag = null, moved = false;
  box.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, top: view.top, from: view.from, to: view.to };
    moved = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!moved && Math.abs(dx) + Math.abs(dy) < STILL_PIXELS) return;
    moved = true;
    const by = dx / width() * (drag.to - drag.from);
    scrollTo(drag.top - Math.round(dy / ROW));
    move(drag.from - by, drag.to - by);
  });
  window.addEventListener("pointerup", () => { drag = null; });
  box.addEventListener("click", (event) => {
    const item = !moved && timeline.at(event.offsetX, event.offsetY);
    if (!item) return;
    const [begin, end, row, n, many] = item;
    if (many > 1) move(begin - (end - begin), end + (end - begin)); else pick(row, n);
  });

  const everything = () => move(all.whole.from, all.whole.to);
  const keys = {
    ArrowLeft: () => pan(-STEP), ArrowRight: () => pan(STEP),
    ArrowUp: () => scrollTo(view.top - 3), ArrowDown: () => scrollTo(view.top + 3),
    "+": () => zoom(ZOOM), "=": () => zoom(ZOOM), "-": () => zoom(1 / ZOOM),
    0: everything, Home: everything,
    ",": () => step(-1), ".": () => step(1), "<": () => climb(-1), ">": () => climb(1),
    n: () => next(1), p: () => next(-1),
    Enter: () => view.picked && reveal(view.picked.row, view.picked.n),
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
    later: () => pan(STEP), fit: everything, next: () => next(1), previous: () => next(-1),
  })) $(id).addEventListener("click", act);
  $("rows").addEventListener("input", (event) => { view.top = +event.target.value; draw(); });
}

(async () => {
  const packed = $("data");
  if (!packed) return;
  const say = (text) => { $("timeline-note").textContent = text; };
  let all;
  try {
    all = recordingOf(await unpacked(packed.textContent.trim()));
  } catch (error) {
    say(`The timeline needs a newer browser (${error.name}). Everything else is below.`);
    return;
  }
  packed.remove();

  const ink = inkOf(all.names), curves = curvesOf(all, ink), durations = durationsOf(all, ink);
  const timeline = timelineOf(all, ink, curves.draw);
  const { view, box, shownLines, drawNow } = timeline;
  listenTo(all, timeline, movingIn(all, timeline));
  curves.chooser.addEventListener("change", timeline.draw);

  const resized = () => {
    const most = ink.printing ? PAPER_HEIGHT : Math.max(240, innerHeight * 0.6);
    const wanted = Math.max(LEAST_HEIGHT, all.lines.length * ROW + AXIS + 12);
    box.style.height = `${Math.min(wanted, most)}px`;
    view.top = Math.min(view.top, Math.max(0, all.lines.length - shownLines()));
    for (const each of [timeline.chart, curves.chart, durations.chart]) {
      if (!each) continue;
      each.getDom().style.width = ink.printing ? `${PAPER_WIDTH}px` : "";
      each.resize();
    }
    drawNow();
    durations.draw();
  };
  window.addEventListener("resize", () => { if (!ink.printing) resized(); });
  ink.dark.addEventListener("change", () => { ink.repaint(); resized(); });

  const count = all.rows.reduce((sum, row) => sum + row.begins.length, 0);
  const counted = `${count.toLocaleString("en")} spans, ` +
    `${all.marks.length.toLocaleString("en")} moments, ${all.processes.length} processes.`;

  // Printing. What is on paper is drawn before the page has the paper's width or colours, and at
  // once: no frame comes in between.
  let paused = null;
  window.addEventListener("beforeprint", () => {
    if (ink.printing) return;
    ink.printing = true;
    const closed = [...document.querySelectorAll("details:not([open])")];
    paused = { closed, top: view.top };
    for (const each of closed) each.open = true;
    document.documentElement.dataset.paper = "yes";
    ink.repaint();
    resized();
    if (shownLines() < all.lines.length) {
      say(`${counted} On paper: lines ${view.top + 1} to ${view.top + shownLines()} of ` +
        `${all.lines.length}.`);
    }
  });
  window.addEventListener("afterprint", () => {
    if (!ink.printing) return;
    ink.printing = false;
    for (const each of paused.closed) each.open = false;
    delete document.documentElement.dataset.paper;
    view.top = paused.top;
    ink.repaint();
    resized();
    say(counted);
  });

  say(counted);
  $("chart-section").hidden = false;
  resized();
  // For tests, and for whoever prints: the first drawing is done.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = "yes";
  }));
})();
