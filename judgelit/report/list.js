// The list of items. Only the rows that can be seen, and a few around them, are in the page.

const ROW = 64;
const AROUND = 6;

class ItemList {
  constructor(box, rows, choose) {
    Object.assign(this, { box, rows, choose, items: [], matching: new Set(), chosen: null, places: new Map() });
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(box);
    rows.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) choose(Number(row.dataset.item), true);
    });
  }

  show(items, matching) {
    Object.assign(this, { items, matching, places: new Map(items.map((item, place) => [item, place])) });
    this.rows.style.height = `${items.length * ROW}px`;
    this.box.scrollTop = 0;
    this.draw();
  }

  // Mark an item, and scroll to it if it cannot be seen.
  mark(item) {
    this.chosen = item;
    const place = this.places.get(item);
    if (place !== undefined) {
      const top = place * ROW;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight;
    }
    this.draw();
  }

  // The item this many places after the chosen one; the first if none is chosen.
  beside(steps) {
    const place = this.places.get(this.chosen);
    if (place === undefined) return this.items[0] ?? null;
    return this.items[Math.min(this.items.length - 1, Math.max(0, place + steps))];
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - AROUND);
    const last = Math.min(this.items.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + AROUND);
    const rows = [];
    for (let place = first; place < last; place++) rows.push(this.row(place));
    this.rows.replaceChildren(...rows);
    const chosen = this.rows.querySelector('[aria-selected="true"]');
    if (chosen) this.box.setAttribute("aria-activedescendant", chosen.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  row(place) {
    const number = this.items[place];
    const item = data.items[number];
    const about = make("div", "about", ...(item.attack ? [make("span", "flag", `attack: ${item.attack}`)] : []), make("span", "kind", [item.set, item.category, item.subset].filter(Boolean).join(" · ")));
    let judge = null;
    let marked = null;
    // Votes about one prompt have one sign, that of their majority.
    const counting = ofItem[number].filter((one, place, all) => place === 0 || one.counts !== all[place - 1].counts);
    for (const one of counting.slice(0, 24)) {
      if (one.judge !== judge) {
        marked = make("span", `marked ${judgeColour(one.judge)}`, dot());
        marked.title = data.judges[one.judge];
        about.append(marked);
        judge = one.judge;
      }
      const { outcome, votes } = one.counts;
      const label = `${data.judges[one.judge]}: ${OUTCOMES[outcome]}`;
      const found = sign(outcome, votes ? `${label}, ${shareText(item, one.counts)}` : label);
      if (!(votes ?? [one]).some((each) => this.matching.has(each))) found.classList.add("off");
      marked.append(found);
      if (votes) marked.append(make("span", "share", shortShare(item, one.counts)));
    }
    const row = make("div", "row", make("div", "ask", item.question.slice(0, 200)), about);
    row.id = `row-${number}`;
    row.dataset.item = number;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(number === this.chosen));
    row.setAttribute("aria-posinset", place + 1);
    row.setAttribute("aria-setsize", this.items.length);
    row.style.top = `${place * ROW}px`;
    return row;
  }
}
