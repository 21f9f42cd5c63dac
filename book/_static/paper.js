// On paper: the light theme, and the folded answers open, since nobody can open them there.
// Afterwards everything is as the reader had it.
(() => {
  const page = document.documentElement;
  let theme;
  let opened = [];
  addEventListener("beforeprint", () => {
    theme = page.dataset.theme;
    page.dataset.theme = "light";
    opened = [...document.querySelectorAll(".tag_hide-cell > details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    if (theme === undefined) delete page.dataset.theme;
    else page.dataset.theme = theme;
    for (const fold of opened) fold.open = false;
  });
})();
