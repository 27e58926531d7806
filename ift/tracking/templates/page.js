// Shows and hides rows of the predictions; what they say stands in the page already and is never read as code.
(() => {
  "use strict";
  const section = document.getElementById("predictions");
  if (!section) return;
  const find = (name) => section.querySelector(`[data-control="${name}"]`);
  const rows = Array.from(section.querySelectorAll(".prediction"));
  const [text, task, change, marks] = ["text", "task", "change", "marks"].map(find);
  const [told, more, all] = ["told", "more", "all"].map(find);
  const STEP = 50;
  let limit = STEP;
  let words = null; // of each row, in small letters; made when first searched

  function show() {
    const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (wanted.length && !words) words = rows.map((row) => row.textContent.toLowerCase());
    let found = 0;
    rows.forEach((row, i) => {
      const fits =
        (!task.value || row.dataset.task === task.value) &&
        (!change.value || row.dataset.change === change.value) &&
        wanted.every((word) => words[i].includes(word));
      if (fits) found += 1;
      row.hidden = !fits || found > limit;
    });
    const shown = Math.min(found, limit);
    told.textContent = found
      ? `${shown.toLocaleString("en")} of ${found.toLocaleString("en")} rows that fit`
      : "No row fits.";
    more.hidden = all.hidden = found <= limit;
  }

  function again() {
    limit = STEP;
    show();
  }

  text.addEventListener("input", again);
  task.addEventListener("change", again);
  change.addEventListener("change", again);
  marks.addEventListener("change", () => {
    section.dataset.marks = marks.value;
  });
  more.addEventListener("click", () => {
    limit += STEP;
    show();
  });
  all.addEventListener("click", () => {
    limit = Infinity;
    show();
  });
  for (const hidden of section.querySelectorAll(".controls")) hidden.hidden = false;
  find("without").hidden = true;
  section.classList.add("searchable");
  show();
})();
