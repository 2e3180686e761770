// Shows the frame that a slider stands at, and the reply to a choice. Pictures and words were made in Python (qatcourse.viz.widgets).
"use strict";

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function nodes(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  return [...holder.content.childNodes];
}

async function wake(figure) {
  const { pieces, pictures, said } = await unpack(window.bookFrames[figure.dataset.frames]);
  const controls = [...figure.querySelectorAll("input[type=range], fieldset")];
  const picture = figure.querySelector(".picture");
  const sentence = figure.querySelector(".qatlib-sentence");
  const drawn = []; // a picture is parsed, and a bitmap decoded, once
  const parts = (k) => (drawn[k] ??= nodes(pictures[k].map((piece) => pieces[piece]).join("")));

  const sizes = controls.map((c) => (c.matches("fieldset") ? Number(c.dataset.count) : Number(c.max) + 1));
  const chosen = (c) => Number((c.matches("fieldset") ? c.querySelector("input:checked") : c).value);
  const labels = new Map(controls.filter((c) => c.dataset.choices).map((c) => [c, JSON.parse(c.dataset.choices)]));

  function show() {
    const position = controls.reduce((sum, control, k) => sum * sizes[k] + chosen(control), 0);
    for (const [control, choices] of labels) {
      const words = choices[chosen(control)];
      control.setAttribute("aria-valuetext", words);
      control.nextElementSibling.value = words;
    }
    picture.replaceChildren(...parts(position));
    sentence.textContent = said[position];
    figure.dataset.position = position;
  }

  figure.addEventListener("input", show);
  figure.querySelector(".controls").hidden = false;
  figure.querySelector(".still").remove();
  figure.dataset.ready = "";
  show(); // a browser may bring back where the reader left the slider
  if (pictures.length <= 16) await Promise.allSettled(pictures.flatMap((_, k) => parts(k).map((part) => part.decode?.())));
}

function answer(question) {
  const reply = question.querySelector(".reply");
  const replies = [...question.querySelectorAll("template")];
  question.addEventListener("change", (event) => {
    reply.replaceChildren(...replies[Number(event.target.value)].content.firstElementChild.cloneNode(true).childNodes);
  });
}

// What is wider than its place scrolls; the keyboard must reach it.
function reachable() {
  for (const box of document.querySelectorAll("pre, .cell_output, .picture, .formula, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", () => {
  reachable();
  window.addEventListener("load", reachable);
  window.addEventListener("resize", reachable);
  document.querySelectorAll(".question").forEach(answer);
  if ("DecompressionStream" in window) document.querySelectorAll(".slider-figure").forEach(wake);
});
