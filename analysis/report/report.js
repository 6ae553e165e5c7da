// Adds to a page that is complete without it: values under the pointer, series that switch off, the current section in the contents.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const reach = 26; // CSS pixels from the pointer to the nearest point

  for (const figure of document.querySelectorAll("figure svg")) {
    const points = [...figure.querySelectorAll(".pt")];
    for (const point of points) {
      const title = point.querySelector("title");
      point.dataset.tip = title.textContent;
      title.remove(); // the browser's own tooltip would come on top of ours
    }
    let shown = null;
    const hide = () => {
      if (shown) shown.classList.remove("near");
      shown = null;
      tip.hidden = true;
    };
    figure.addEventListener("pointermove", (event) => {
      let best = null, distance = reach;
      for (const point of points) {
        if (point.closest(".off")) continue;
        const box = point.getBoundingClientRect();
        const far = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        if (far < distance) [best, distance] = [point, far];
      }
      if (best !== shown) {
        hide();
        if (best) {
          shown = best;
          best.classList.add("near");
          tip.textContent = best.dataset.tip;
          tip.hidden = false;
        }
      }
      if (!best) return;
      const width = tip.offsetWidth, height = tip.offsetHeight;
      const left = Math.min(Math.max(8, event.clientX + 14), innerWidth - width - 8);
      const top = event.clientY - height - 14 < 8 ? event.clientY + 18 : event.clientY - height - 14;
      tip.style.left = left + "px";
      tip.style.top = top + "px";
    });
    figure.addEventListener("pointerleave", hide);
  }

  for (const key of document.querySelectorAll(".key")) {
    key.setAttribute("role", "button");
    key.setAttribute("aria-pressed", "true");
    key.tabIndex = 0;
    const toggle = () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(on));
      for (const part of key.closest("section").getElementsByClassName(key.dataset.series)) {
        part.classList.toggle("off", !on);
      }
    };
    key.addEventListener("click", toggle);
    key.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }

  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
  }, { rootMargin: "-15% 0px -70% 0px" });
  for (const id of links.keys()) {
    const section = document.getElementById(id);
    if (section) watch.observe(section);
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details:not(.bulk)").forEach((d) => { d.open = true; }));
})();
