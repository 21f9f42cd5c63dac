// For the readers of a page with explorers: names the sliders for a screen reader, says aloud what
// the picture shows after a move, and keeps the console quiet.
(() => {
  // The widget library's schema checker reports on the library's own schema, on every page.
  const warn = console.warn;
  console.warn = (...words) => {
    if (!String(words[0]).startsWith("strict mode:")) warn.apply(console, words);
  };

  const name = (explorer) => {
    for (const slider of explorer.querySelectorAll(".widget-slider")) {
      const handle = slider.querySelector("[role=slider]");
      const label = slider.querySelector(".widget-label");
      const readout = slider.querySelector(".widget-readout");
      if (!handle || !label || !readout) continue;
      handle.setAttribute("aria-label", label.textContent);
      label.removeAttribute("title");
      // The readout repeats the slider; a field for typing would be one more stop on the way.
      readout.setAttribute("contenteditable", "false");
      const say = () => handle.setAttribute("aria-valuetext", readout.textContent);
      new MutationObserver(say).observe(readout, { childList: true, characterData: true, subtree: true });
      say();
    }
    const status = document.createElement("div");
    status.className = "ckd-status";
    status.setAttribute("role", "status");
    explorer.append(status);
    let timer;
    explorer.addEventListener("keydown", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const shown = [...explorer.querySelectorAll("img")].find((picture) => picture.offsetParent);
        if (shown) status.textContent = shown.alt;
      }, 400);
    });
  };

  const seen = new WeakSet();
  new MutationObserver(() => {
    for (const explorer of document.querySelectorAll(".ckd-explorer")) {
      const ready = explorer.querySelector("img") && explorer.querySelector("[role=slider]");
      if (ready && !seen.has(explorer)) {
        seen.add(explorer);
        name(explorer);
      }
    }
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
