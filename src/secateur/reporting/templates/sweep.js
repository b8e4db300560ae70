// Figures of a sweep: choose axis and sparsity, hide curves, read values under the pointer.
const guideLine = () => {
  const guide = document.createElementNS("http://www.w3.org/2000/svg", "line");
  guide.setAttribute("class", "guide");
  guide.setAttribute("y1", 12);
  guide.setAttribute("y2", 180);
  return guide;
};
const pointed = (svg, event) =>
  new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;

for (const part of document.querySelectorAll(".figures")) {
  const chosen = name => part.querySelector(`input[data-choice="${name}"]:checked`)?.value;
  const show = () => {
    for (const box of part.querySelectorAll(".plot")) {
      box.hidden = box.dataset.axis !== chosen("axis") || box.dataset.sparsity !== chosen("sparsity");
    }
    for (const box of part.querySelectorAll("input[data-curve]")) {
      for (const drawn of part.querySelectorAll(`.plot .curve-${box.dataset.curve}`)) {
        drawn.style.display = box.checked ? "" : "none";
      }
    }
  };
  for (const control of part.querySelectorAll(".controls, .curves")) control.hidden = false;
  part.addEventListener("change", show);
  show();
  for (const plot of part.querySelectorAll(".plot")) {
    const svg = plot.querySelector("svg"), out = plot.querySelector(".readout");
    const marks = [...svg.querySelectorAll(".mark")];
    const guide = guideLine();
    svg.addEventListener("pointermove", event => {
      const x = pointed(svg, event);
      const seen = marks.filter(mark => mark.style.display !== "none");
      if (!seen.length) return;
      const at = mark => Number(mark.getAttribute("cx"));
      const nearest = at(seen.reduce((best, mark) => Math.abs(at(mark) - x) < Math.abs(at(best) - x) ? mark : best));
      svg.append(guide);
      guide.setAttribute("x1", nearest);
      guide.setAttribute("x2", nearest);
      const texts = seen.filter(mark => Math.abs(at(mark) - nearest) < 0.6)
        .map(mark => mark.querySelector("title").textContent.split(" at sparsity, "));
      out.textContent = `${texts[0][1]}: ${texts.map(text => text[0]).join("; ")}`;
    });
  }
}

// Training: choose the sparsity that is drawn strongly, hide curves, read an epoch under the pointer.
for (const part of document.querySelectorAll(".trainings")) {
  const drawn = [...part.querySelectorAll(".line, .mark")];
  const show = () => {
    const level = part.querySelector('input[data-choice="level"]:checked');
    if (level) {
      for (const one of drawn) {
        const own = [...one.classList].find(name => name.startsWith("at-"));
        one.classList.toggle("aside", own !== undefined && own !== `at-${level.value}`);
      }
      for (const told of part.querySelectorAll("[data-level]")) told.textContent = level.parentElement.textContent;
    }
    for (const box of part.querySelectorAll("input[data-curve]")) {
      for (const one of drawn.filter(each => each.classList.contains(`curve-${box.dataset.curve}`))) {
        one.style.display = box.checked ? "" : "none";
      }
    }
  };
  for (const control of part.querySelectorAll(".controls")) control.hidden = false;
  part.addEventListener("change", show);
  show();
  for (const box of part.querySelectorAll(".course")) {
    const svg = box.querySelector("svg"), out = box.querySelector(".readout");
    const lines = [...svg.querySelectorAll(".line")].map(path => {
      const at = path.dataset.at.split("|"), values = path.dataset.values.split("|");
      const places = path.getAttribute("d").match(/[\d.]+(?= )/g).map(Number).slice(-at.length);
      return { path, at, values, places, name: path.querySelector("title").textContent };
    });
    const guide = guideLine();
    svg.addEventListener("pointermove", event => {
      const x = pointed(svg, event);
      const seen = lines.filter(line => line.path.style.display !== "none" && !line.path.classList.contains("aside"));
      const places = seen.flatMap(line => line.places);
      if (!places.length) return;
      const nearest = places.reduce((best, place) => Math.abs(place - x) < Math.abs(best - x) ? place : best);
      svg.append(guide);
      guide.setAttribute("x1", nearest);
      guide.setAttribute("x2", nearest);
      const read = seen.map(line => [line, line.places.indexOf(nearest)]).filter(([, index]) => index >= 0);
      const texts = read.map(([line, index]) => `${line.name}: ${line.values[index]}`);
      out.textContent = `epoch ${read[0][0].at[read[0][1]]}: ${texts.join("; ")}`;
    });
  }
}
