// The data of the page, and the state that its address holds: a filter and a chosen item.

const data = JSON.parse(document.getElementById("data").textContent);
const judgeColour = (number) => `j${(number + (data.judges.length === 1 ? 2 : 0)) % 8}`;

// An attacked pair has only the fields that differ from those of the pair that was attacked.
data.items.forEach((item, number) => {
  if (item.of === undefined) return;
  const plain = data.items[item.of];
  const changed = item.answers.findIndex((answer) => answer !== null);
  data.items[number] = { ...plain, ...item, changed, answers: item.answers.map((answer, place) => answer ?? plain.answers[place]) };
});
const isAttacked = (one) => data.items[one.item].attack !== undefined;

// Judgments as objects, and for each item its judgments. `counts` is what the figures count: the judgment itself, or
// the majority of the votes about its prompt.
const promptOf = (one) => `${one.judge} ${one.item} ${one.order}`;
const majorities = new Map(data.majorities.map(([judge, item, order, verdict, outcome]) => {
  const one = { judge, item, order, verdict, outcome, votes: [] };
  return [promptOf(one), one];
}));
const judgments = data.judgments.map(
  ([judge, item, order, verdict, outcome, apart, fooled, margin, finish, sample, template, text]) => {
    const one = { judge, item, order, verdict, outcome, apart: apart === 1, fooled: fooled === 1, margin, finish, sample, template, text };
    const majority = majorities.get(promptOf(one));
    majority?.votes.push(one);
    one.counts = majority ?? one;
    return one;
  });
const ofItem = data.items.map(() => []);
for (const one of judgments) ofItem[one.item].push(one);
for (const found of ofItem) {
  found.sort((a, b) => a.judge - b.judge || (a.order === b.order ? a.sample - b.sample : a.order < b.order ? -1 : 1));
}
const attackedCount = judgments.filter(isAttacked).length;

const FIELDS = ["q", "set", "judge", "category", "subset", "attack", "outcome", "apart", "cut", "fooled"];

// {field: text} of the address; `pair` is `SET/ID`, with the number of the item where that is not enough.
function readAddress() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function addressOf(filter, item) {
  const found = new URLSearchParams();
  for (const name of FIELDS) if (filter[name]) found.set(name, filter[name]);
  if (item !== null) found.set("pair", nameOf(item));
  return `#${found}`;
}

const itemsByName = new Map();
const names = data.items.map((item, number) => {
  const plain = `${item.set}/${item.id}`;
  const name = itemsByName.has(plain) ? `${plain}#${number}` : plain;
  itemsByName.set(name, number);
  return name;
});
const nameOf = (item) => names[item];

// Texts in lower case, made at the first search.
let lowered = null;
function lowerTexts() {
  lowered ??= {
    items: data.items.map((item) => [item.id, item.question, ...item.answers, ...(item.context ?? []).map((turn) => turn.content)]
      .join("\n").toLowerCase()),
    judgments: new Map(judgments.map((one) => [one, one.text.toLowerCase()])),
  };
  return lowered;
}

// Items that match the filter, and the judgments of them that do. A word of the question or of an answer matches all
// judgments of the item. Attacked pairs only match a filter that names their attack, or `any`.
function filterItems(filter) {
  const items = [];
  const matching = new Set();
  const words = (filter.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const texts = words.length ? lowerTexts() : null;
  data.items.forEach((item, number) => {
    if (filter.attack === "any" ? item.attack === undefined : (item.attack ?? "") !== (filter.attack ?? "")) return;
    if (filter.set && item.set !== filter.set) return;
    if (filter.category && item.category !== filter.category) return;
    if (filter.subset && item.subset !== filter.subset) return;
    const rest = texts ? words.filter((word) => !texts.items[number].includes(word)) : [];
    let found = false;
    for (const one of ofItem[number]) {
      if (filter.judge && data.judges[one.judge] !== filter.judge) continue;
      if (filter.outcome && one.counts.outcome !== filter.outcome) continue;
      if (filter.apart && !one.apart) continue;
      if (filter.attack && filter.fooled && !one.fooled) continue;
      if (filter.cut && one.finish !== "length") continue;
      if (rest.length && !rest.every((word) => texts.judgments.get(one).includes(word))) continue;
      matching.add(one);
      found = true;
    }
    if (found) items.push(number);
  });
  return { items, matching };
}

// An element with a class, and texts or elements in it. Texts only ever become text nodes.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
function sign(kind, label) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", `sign ${kind}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  use.setAttribute("href", `#s-${kind}`);
  svg.append(use);
  return svg;
}
function dot() {
  const svg = document.createElementNS(SVG, "svg");
  const circle = document.createElementNS(SVG, "circle");
  svg.setAttribute("class", "dot");
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, value] of [["cx", 5], ["cy", 5], ["r", 4.5]]) circle.setAttribute(name, value);
  svg.append(circle);
  return svg;
}
const OUTCOMES = { right: "right", wrong: "wrong", none: "no verdict", open: "no right answer known" };
