// The page: filter, chosen item, keyboard, colours and tips.

const byId = (id) => document.getElementById(id);
const form = document.querySelector(".filters");
let chosen = null;

// Colours: those of the system, light or dark.
const THEMES = { "": ["Auto", "those of the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = THEMES[name][0];
  byId("theme").setAttribute("aria-label", `Colours: ${THEMES[name][1]}`);
  try { localStorage.setItem("judgelit-theme", name); } catch { /* a browser may have no storage for files */ }
  drawCharts();
}
byId("theme").addEventListener("click", () => {
  const all = Object.keys(THEMES);
  setTheme(all[(all.indexOf(document.documentElement.dataset.theme ?? "") + 1) % all.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
let theme = "";
try { theme = localStorage.getItem("judgelit-theme") ?? ""; } catch { /* as above */ }
setTheme(theme in THEMES ? theme : "");

// Tips: what a figure means, at its heading.
const tip = byId("tip");
function showTip(term) {
  tip.textContent = term.dataset.tip;
  tip.hidden = false;
  const at = term.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${at.bottom + 8 + tip.offsetHeight > innerHeight ? at.top - tip.offsetHeight - 8 : at.bottom + 8}px`;
  term.setAttribute("aria-describedby", "tip");
}
for (const term of document.querySelectorAll(".term")) {
  for (const event of ["mouseenter", "focus", "click"]) term.addEventListener(event, () => showTip(term));
  for (const event of ["mouseleave", "blur"]) term.addEventListener(event, () => { tip.hidden = true; });
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

const help = byId("help");
byId("help-open").addEventListener("click", () => help.showModal());

if (form) startBrowser();

function startBrowser() {
  const detail = byId("detail");
  const list = new ItemList(byId("list"), byId("rows"), choose);

  const values = (name) => [...new Set(data.items.map((item) => item[name]).filter(Boolean))];
  const choices = { set: values("set"), attack: values("attack"), judge: data.judges, category: values("category").sort(), subset: values("subset").sort() };
  for (const [name, found] of Object.entries(choices)) {
    for (const value of found) byId(name).append(new Option(value, value));
    byId(name).closest("label").hidden = found.length < (name === "attack" ? 1 : 2);
  }

  const readFilter = () => Object.fromEntries(FIELDS.map((name) => {
    const field = byId(name);
    return [name, field.type === "checkbox" ? (field.checked ? "1" : "") : field.value];
  }));
  function writeFilter(filter) {
    for (const name of FIELDS) {
      const field = byId(name);
      if (field.type === "checkbox") field.checked = Boolean(filter[name]);
      else field.value = filter[name] ?? "";
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
  }

  function apply() {
    const began = performance.now();
    const filter = readFilter();
    const { items, matching } = filterItems(filter);
    list.show(items, matching);
    byId("fooled").closest("label").hidden = !filter.attack;
    // Attacked pairs are never counted together with the others.
    const all = filter.attack ? attackedCount : judgments.length - attackedCount;
    const noun = `${filter.attack ? "attacked pair" : "question"}${items.length === 1 ? "" : "s"}`;
    byId("count").textContent = `${matching.size.toLocaleString("en")} of ${all.toLocaleString("en")} judgments, of ${items.length.toLocaleString("en")} ${noun}`;
    if (!items.length) list.rows.replaceChildren(make("p", "empty", "No judgment matches. Clear the filter to see all."));
    byId("count").dataset.took = performance.now() - began;
    return items;
  }

  // Show an item, or the first one of the list if none is chosen.
  function showChosen(items) {
    const shown = chosen ?? items[0] ?? null;
    list.mark(shown);
    document.body.classList.toggle("reading", chosen !== null);
    if (shown === null) detail.replaceChildren(make("p", "empty", "No question is chosen."));
    else if (detail.dataset.item !== String(shown)) showItem(detail, shown, close, choose);
    detail.dataset.item = shown ?? "";
  }

  function choose(item, isNew) {
    if (item === null || item === undefined) return;
    const step = isNew && item !== chosen;
    chosen = item;
    history[step ? "pushState" : "replaceState"](null, "", addressOf(readFilter(), chosen));
    showChosen(list.items);
    if (step && matchMedia("(max-width: 860px)").matches) detail.focus();
  }

  function close() {
    chosen = null;
    history.replaceState(null, "", addressOf(readFilter(), null));
    showChosen(list.items);
    byId("list").focus({ preventScroll: true });
  }

  function changed(isTyping) {
    const items = apply();
    // Of a chosen question that the filter leaves out, nothing is shown any more.
    if (chosen !== null && !list.places.has(chosen)) chosen = null;
    history[isTyping ? "replaceState" : "pushState"](null, "", addressOf(readFilter(), chosen));
    showChosen(items);
  }

  function followAddress(isFirst) {
    const state = readAddress();
    const isState = [...FIELDS, "pair"].some((name) => name in state);
    // Other addresses are those of the page's parts.
    if (location.hash.length > 1 && !isState && !isFirst) return;
    writeFilter(state);
    const items = apply();
    chosen = itemsByName.get(state.pair) ?? null;
    showChosen(items);
    if (isState) byId("judgments").scrollIntoView({ behavior: "instant" });
  }

  let waiting = 0;
  byId("q").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => changed(true), 120);
  });
  form.addEventListener("change", (event) => { if (event.target.id !== "q") changed(false); });
  form.addEventListener("reset", () => setTimeout(() => changed(false)));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => followAddress(false));
  addEventListener("popstate", () => followAddress(false));

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const isTyping = event.target.matches("input[type=search], select");
    if (event.key === "Escape") {
      if (isTyping) event.target.blur();
      else if (chosen !== null) close();
      return;
    }
    if (isTyping) return;
    const inList = event.target === byId("list");
    const steps = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -1e9, End: 1e9 } : {}) }[event.key];
    if (steps !== undefined) {
      event.preventDefault();
      choose(chosen === null && list.chosen === null ? list.items[0] : list.beside(steps), false);
    } else if (event.key === "Enter" && inList) {
      choose(list.chosen, true);
    } else if (event.key === "/") {
      event.preventDefault();
      byId("q").focus();
      byId("q").select();
    } else if (event.key === "?") {
      help.showModal();
    }
  });

  followAddress(true);
}
