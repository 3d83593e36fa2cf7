"use strict";
// Everything here is an addition: without scripts the page shows all tables and figures.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "{}");
  const made = (tag, text = "", parent = null) => {
    const element = document.createElement(tag);
    element.textContent = text;
    parent?.append(element);
    return element;
  };
  root.classList.add("js");

  // Folded parts open for a link into them and for print.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target?.scrollIntoView();
  };
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    folded.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((fold) => { fold.open = false; }));

  // Where the numbers of a row come from.
  const about = read("about"), numbers = read("numbers"), dialog = document.getElementById("lineage");
  const home = /\/published\/[^/]+\/[^/]*$/.test(location.pathname) ? "results/published/" : "results/";
  all(".home").forEach((each) => { each.textContent = home; });
  all("a.all").forEach((each) => { each.hidden = home === "results/"; }); // the page over all is of what is published
  const show = (button) => {
    const table = numbers.tables[button.dataset.table], places = button.dataset.lines.split(" ").map(Number);
    const file = `${home}${about.name}/tables/${button.dataset.table}.csv`;
    dialog.replaceChildren();
    made("h2", button.textContent, dialog).id = "lineage-head";
    const close = made("button", "Close", dialog);
    close.addEventListener("click", () => dialog.close());
    const list = made("ul", "", made("section", "", dialog));
    const artifacts = new Set();
    for (const place of places) {
      const [what, number, group] = table.lines[place];
      const item = made("li", "", list);
      made("span", what ? `${what}: ` : "", item);
      made("b", number, item);
      made("code", `precfm why ${file}:${place + 1},${table.column}`, item);
      numbers.groups[group].forEach((each) => artifacts.add(each));
    }
    const kinds = Map.groupBy
      ? Map.groupBy([...artifacts].map((each) => numbers.artifacts[each]), (each) => each[0])
      : new Map([["artifacts", [...artifacts].map((each) => numbers.artifacts[each])]]);
    made("h3", "Made of these artifacts, which the commands above trace on to maps, flows, data and code", dialog);
    for (const [kind, several] of kinds) {
      const section = made("section", "", dialog);
      made("h4", kind, section);
      const items = made("ul", "", section);
      several.forEach(([, what, key]) => made("code", key, made("li", `${what} `, items)));
    }
    made("p", "All of it again: ", dialog).append(made("code", about.command));
    dialog.showModal();
  };
  all("button[data-lines]").forEach((button) => {
    button.closest("tr").addEventListener("click", () => { if (!getSelection().toString()) show(button); });
  });

  // Two methods side by side, from the same noise.
  all(".pair").forEach((pair) => {
    const strips = all(".strip img", pair.parentElement);
    all("div", pair).forEach((side, place) => {
      const select = side.querySelector("select"), image = side.querySelector("img");
      strips.forEach((strip) => made("option", strip.previousElementSibling.textContent, select));
      const draw = () => Object.assign(image, { src: strips[select.selectedIndex].src, alt: strips[select.selectedIndex].alt });
      select.selectedIndex = Math.min(place + 1, strips.length - 1);
      select.addEventListener("change", draw);
      draw();
    });
    pair.hidden = false;
    pair.parentElement.querySelector("details").open = false;
  });

  // A chart takes the place of its static figure once it is drawn.
  Object.entries(read("charts")).forEach(async ([id, spec]) => {
    const box = document.querySelector(`[data-chart="${id}"]`);
    box.hidden = false;
    try {
      const options = { actions: false, renderer: "svg", bind: box.querySelector(".controls"), ast: false };
      const { view } = await vegaEmbed(box.querySelector(".plot"), spec, options);
      box.querySelector("fieldset")?.addEventListener("change", () => {
        const off = all("input:not(:checked)", box.querySelector("fieldset")).map((each) => [each.value, true]);
        view.signal("hidden", Object.fromEntries(off)).runAsync();
      });
      all(":scope > details.static", box.parentElement).forEach((figure) => { figure.open = false; });
      box.dataset.drawn = "";
    } catch (error) {
      box.hidden = true;
      throw error;
    }
  });
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();
