/* Small helps of every page: definitions of glossary terms, the print button, what print shows. */
(() => {
  "use strict";

  /* A term's definition appears while the term is pointed at or has the focus; Escape puts it away. */
  const data = document.getElementById("lm-terms");
  const definitions = data ? JSON.parse(data.textContent) : {};
  let box = null;
  let owner = null;

  const hide = () => {
    box?.remove();
    owner?.removeAttribute("aria-describedby");
    box = owner = null;
  };

  const show = link => {
    if (owner === link) return;
    hide();
    owner = link;
    box = Object.assign(document.createElement("div"), {id: "lm-definition", className: "lm-definition"});
    box.setAttribute("role", "tooltip");
    box.append(definitions[link.hash.slice(1)]);
    document.body.append(box);
    link.setAttribute("aria-describedby", box.id);
    const at = link.getClientRects()[0], size = box.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - size.width - 8));
    const above = at.bottom + size.height + 12 > innerHeight && at.top > size.height + 12;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(above ? at.top - size.height - 6 : at.bottom + 6) + scrollY}px`;
    box.addEventListener("mouseleave", hide);
  };

  for (const link of document.querySelectorAll("a:has(> .std-term)")) {
    if (!(link.hash.slice(1) in definitions)) continue;
    link.addEventListener("mouseenter", () => show(link));
    link.addEventListener("focus", () => show(link));
    link.addEventListener("blur", hide);
    link.addEventListener("mouseleave", event => {
      if (event.relatedTarget !== box && document.activeElement !== link) hide();
    });
  }
  addEventListener("keydown", event => { if (event.key === "Escape") hide(); });

  /* A plot is drawn when it comes into view; all of them are before they are printed. One that fails stops nothing. */
  for (const button of document.querySelectorAll(".lm-print")) button.addEventListener("click", async () => {
    await Promise.allSettled([...document.querySelectorAll("lm-plot")].map(plot => plot.show?.()));
    print();
  });

  /* Paper cannot be unfolded. What was opened for it is closed again afterwards. */
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".bd-article details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
    opened = [];
  });
})();
