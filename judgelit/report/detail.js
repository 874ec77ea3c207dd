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

function showItem(where, number, close, choose) {
  const item = data.items[number];
  const back = make("button", "close", "Back to the list");
  back.type = "button";
  back.addEventListener("click", close);
  const about = [item.set, item.category, item.subset, item.source, item.id].filter(Boolean).join(" · ");
  const bar = make("div", "bar", back, make("span", "where", about));
  bar.lastChild.title = about;
  if (item.attack) {
    const plain = make("button", "", "The pair without the attack");
    plain.type = "button";
    plain.addEventListener("click", () => choose(item.of, true));
    bar.append(plain);
  }
  where.replaceChildren(bar, question(item), answers(item));
  let judge = null;
  let counts = null;
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
    if (one.counts.votes && one.counts !== counts) {
      counts = one.counts;
      sides = make("div", "sides");
      where.lastChild.append(majority(item, counts), sides);
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
    if (item.changed === place) side.firstChild.append(make("span", "flag", `changed by the attack: ${item.attack}`));
    if (item.label === "tie") side.firstChild.append(make("span", "", "a tie, says the label"));
    textBlock(answer, side);
    sides.append(side);
  });
  return sides;
}

// The verdict in words. `order` says which answer stood where in the prompt.
function verdictText(item, one) {
  if (one.verdict === null) return "no verdict";
  if (one.order.length === 1) return `rating ${Math.round(100 * one.verdict) / 100} for answer ${one.order.toUpperCase()}`;
  if (one.verdict === "tie") return "says: a tie";
  return `prefers answer ${one.order[LETTERS.indexOf(one.verdict)].toUpperCase()}`;
}

// What the votes about one prompt say: [[what, number], ...] with the most frequent first.
function tally(item, majority) {
  const found = new Map();
  for (const one of majority.votes) {
    const what = one.verdict === null ? "no verdict" : one.verdict === "tie" ? "a tie"
      : one.order.length === 1 ? `rating ${one.verdict}` : one.order[LETTERS.indexOf(one.verdict)].toUpperCase();
    found.set(what, (found.get(what) ?? 0) + 1);
  }
  return [...found].sort(([, a], [, b]) => b - a);
}
const shareText = (item, majority) =>
  tally(item, majority).map(([what, number]) => `${what} ${number} of ${majority.votes.length}`).join(", ");
// The largest share alone, and without its name if the list shows several judges.
function shortShare(item, majority) {
  const [[what, number]] = tally(item, majority);
  if (majority.order.length === 1) return `${majority.votes.length} votes`;
  if (majority.verdict === "tie" && what !== "a tie") return "split";
  return data.judges.length > 1 ? `${number}/${majority.votes.length}` : `${what} ${number} of ${majority.votes.length}`;
}

function saidLine(item, one) {
  const said = make("div", "said", sign(one.outcome, OUTCOMES[one.outcome]), verdictText(item, one));
  if (one.outcome === "right" || one.outcome === "wrong") said.append(make("span", "quiet", one.outcome));
  return said;
}

function majority(item, one) {
  const said = saidLine(item, one);
  const what = one.order.length > 1 ? `Majority in the order ${[...one.order.toUpperCase()].join(", ")}` : "Mean of the votes";
  said.prepend(make("span", "quiet", `${what}:`));
  said.append(make("span", "votes", shareText(item, one)));
  if (one.votes.some((vote) => vote.fooled)) said.append(make("span", "flag", "attack succeeded"));
  return make("div", "majority", said);
}

function judgment(item, one) {
  const said = saidLine(item, one);
  if (one.fooled && !one.counts.votes) said.append(make("span", "flag", "attack succeeded"));
  if (one.finish === "length") said.append(make("span", "flag", "cut by length"));
  const facts = [
    one.order.length > 1 ? `shown in the order ${[...one.order.toUpperCase()].join(", ")}` : "",
    one.verdict === null || one.order.length === 1 ? "" : `verdict ${one.verdict}`,
    one.margin === null ? "" : `margin of A ${one.margin < 0 ? "−" : "+"}${Math.abs(one.margin).toFixed(2)}`,
    one.counts.votes ? `vote ${one.sample + 1}` : one.sample ? `sample ${one.sample + 1}` : "",
    `template ${one.template}`,
  ];
  const side = make("div", "side", said, make("p", "facts", facts.filter(Boolean).join(" · ")));
  textBlock(one.text, side);
  return side;
}
