// One item: its question and answers, and below each other the judgments of all judges.

const LONG = 12000;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

// A text as it is. Of a very long one, the first part and a button that shows all.
function textBlock(text, where) {
  if (text.length <= LONG) {
    where.append(make("p", "text", text));
    return;
  }
  const block = make("p", "text", `${text.slice(0, LONG)}…`);
  const button = make("button", "more", `Show all ${text.length.toLocaleString("en")} characters`);
  button.type = "button";
  button.addEventListener("click", () => {
    block.textContent = text;
    button.remove();
  });
  where.append(block, button);
}

function showItem(where, number, close) {
  const item = data.items[number];
  const back = make("button", "close", "Back to the list");
  back.type = "button";
  back.addEventListener("click", close);
  const about = [item.set, item.category, item.subset, item.source, item.id].filter(Boolean).join(" · ");
  const bar = make("div", "bar", back, make("span", "where", about));
  bar.lastChild.title = about;
  where.replaceChildren(bar, question(item), answers(item));
  let judge = null;
  let sides = null;
  for (const one of ofItem[number]) {
    if (one.judge !== judge) {
      judge = one.judge;
      const name = make("span", `judge ${judgeColour(judge)}`, dot(), make("bdi", "", data.judges[judge]));
      const heading = make("h3", "", name);
      if (ofItem[number].some((other) => other.judge === judge && other.apart)) {
        heading.append(make("span", "flag", "not consistent"));
      }
      sides = make("div", "sides");
      where.append(make("section", "judged", heading, sides));
    }
    sides.append(judgment(item, one));
  }
  where.scrollTop = 0;
}

function question(item) {
  const part = make("section", "question");
  for (const turn of item.context ?? []) {
    const before = make("div", "turn", make("h3", "", { system: "System", user: "Earlier question", assistant: "Earlier answer" }[turn.role]));
    textBlock(turn.content, before);
    part.append(before);
  }
  part.append(make("h3", "", "Question"));
  textBlock(item.question, part);
  return part;
}

function answers(item) {
  const best = item.right ?? { A: [0], B: [1] }[item.label] ?? [];
  const sides = make("section", "sides");
  item.answers.forEach((answer, place) => {
    const isBest = best.includes(place);
    const side = make("div", isBest ? "side best" : "side", make("h3", "", item.answers.length > 1 ? `Answer ${LETTERS[place]}` : "Answer"));
    if (isBest) side.firstChild.append(make("span", "label", item.right ? "right" : "better, says the label"));
    if (item.label === "tie") side.firstChild.append(make("span", "", "a tie, says the label"));
    textBlock(answer, side);
    sides.append(side);
  });
  return sides;
}

// The verdict in words. `order` says which answer stood where in the prompt.
function verdictText(item, one) {
  if (one.verdict === null) return "no verdict";
  if (one.order.length === 1) return `rating ${one.verdict} for answer ${one.order.toUpperCase()}`;
  if (one.verdict === "tie") return "says: a tie";
  return `prefers answer ${one.order[LETTERS.indexOf(one.verdict)].toUpperCase()}`;
}

function judgment(item, one) {
  const said = make("div", "said", sign(one.outcome, OUTCOMES[one.outcome]), verdictText(item, one));
  if (one.outcome === "right" || one.outcome === "wrong") said.append(make("span", "quiet", one.outcome));
  if (one.finish === "length") said.append(make("span", "flag", "cut by length"));
  const facts = [
    one.order.length > 1 ? `shown in the order ${[...one.order.toUpperCase()].join(", ")}` : "",
    one.verdict === null || one.order.length === 1 ? "" : `verdict ${one.verdict}`,
    one.margin === null ? "" : `margin of A ${one.margin < 0 ? "−" : "+"}${Math.abs(one.margin).toFixed(2)}`,
    one.sample ? `sample ${one.sample + 1}` : "",
    `template ${one.template}`,
  ];
  const side = make("div", "side", said, make("p", "facts", facts.filter(Boolean).join(" · ")));
  textBlock(one.text, side);
  return side;
}
