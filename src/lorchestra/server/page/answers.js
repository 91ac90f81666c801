// An answer as a card: prediction, decision, bars with a mark per member, and the form that saves the right answer.

import { make, makeSvg, newId, percent } from "./dom.js";

const SHOWN_BARS = 8;

// An answer of /v1/systemone in one form for all types: `rows` has per option its probability `p`, those of the
// members, and whether the prediction set has it; `best` is the most probable row.
export function read(question, answer) {
  const probabilities = {
    noul: () => [1 - answer.noul, answer.noul],
    choice: () => question.options.map((option) => answer.probabilities[option.name]),
    score: () => question.options.map((_, level) => answer.probabilities[level]),
  }[answer.type]();
  const byMember = answer.type === "noul" ? answer.x_members.map((p) => [1 - p, p]) : answer.x_members;
  const fits = answer.x_prediction_set?.map(String);
  const rows = question.options.map(({ name, description }, index) => ({
    name,
    description,
    p: probabilities[index],
    members: byMember.map((member) => member[index]),
    fits: fits?.includes(name) ?? false,
  }));
  const best = answer.type === "choice" ? rows.find((row) => row.name === answer.choice) : rows.reduce(larger);
  return { question, answer, rows, best };
}

const larger = (one, other) => (other.p > one.p ? other : one);

// One line for the status, which screen readers read out.
export function inWords({ question, answer, best }) {
  const decision = { automate: ", automate", abstain: ", leave to a person" }[answer.x_decision] ?? "";
  return `${question.name}: ${best.name}, ${percent(best.p)}${decision}`;
}

// `save(question, name, prediction)` saves the right answer; null where that is not offered.
export function answerCard(shown, run, save) {
  const { question, answer } = shown;
  const heading = newId();
  return make(
    "article",
    { className: "card answer", "aria-labelledby": heading },
    make("h2", { id: heading }, question.name, make("span", { className: "quiet" }, ` ${question.type}`)),
    question.instructions ? make("p", { className: "instructions" }, question.instructions) : null,
    prediction(shown),
    flags(answer),
    decision(shown, run),
    bars(shown),
    facts(shown),
    memberTable(shown),
    save !== null && answer.x_trained ? correction(shown, save) : null,
  );
}

function prediction({ answer, rows, best }) {
  const value = make("span", {}, percent(best.p));
  const line = make("p", { className: "prediction" }, make("b", {}, best.name), value);
  if (answer.type === "score") {
    line.append(make("span", { className: "quiet" }, `expected level ${answer.score.toFixed(2)}, from 0 to ${rows.length - 1}`));
  }
  return line;
}

function flags(answer) {
  const texts = [];
  if (!answer.x_trained) texts.push("not trained on this question");
  if (!answer.x_calibrated) texts.push("not calibrated");
  if (!texts.length) return null;
  return make("p", { className: "flags" }, ...texts.map((text) => make("span", { className: "tag" }, text)));
}

function decision({ question, answer, best }, run) {
  if (answer.x_decision === null) {
    const reason = answer.x_trained
      ? "the run has no certified threshold; lorchestra calibrate makes one."
      : "thresholds are certified for the questions that a run was trained on.";
    return make("p", { className: "decision" }, make("b", {}, "No decision"), `: ${reason}`);
  }
  const automate = answer.x_decision === "automate";
  const certificate = run.questions[question.name]?.certificate;
  const one = certificate && certificateOf(certificate, best.name);
  const below = one?.threshold === null ? "no threshold is certified for this answer" : "below the certified threshold";
  return make(
    "p",
    { className: `decision ${answer.x_decision}` },
    make("b", {}, automate ? "Automate" : "Leave to a person"),
    `: ${automate ? "above the certified threshold" : below}. `,
    one ? make("span", { className: "quiet" }, `${certificate.guarantee}${coverageText(one)}`) : null,
  );
}

// That of the predicted class, if each has its certificate.
const certificateOf = ({ certificates }, predicted) => certificates.find((one) => one.class === predicted) ?? certificates[0];

function coverageText(one) {
  if (one.threshold === null) return "";
  const which = one.class === null ? "" : ` that are predicted as ${one.class}`;
  return ` ${percent(one.coverage)} of these ${one.num_rows.toLocaleString("en")} rows${which} were automated.`;
}

function bars({ answer, rows }) {
  const sorted = answer.type === "score" ? rows : [...rows].sort((one, other) => other.p - one.p);
  const list = make("ul", { className: "bars" }, ...sorted.slice(0, SHOWN_BARS).map(bar));
  const legend = make(
    "p",
    { className: "quiet legend" },
    `Bars: ${answer.x_calibrated ? "calibrated probability" : "mean of the members"}. Marks: the members, not calibrated.`,
  );
  const others = sorted.slice(SHOWN_BARS);
  if (!others.length) return make("div", {}, list, legend);
  const more = make("button", { type: "button", className: "plain small", "aria-expanded": "false" });
  more.textContent = `Show all ${sorted.length} options`;
  more.addEventListener("click", () => {
    const open = more.getAttribute("aria-expanded") === "false";
    more.setAttribute("aria-expanded", String(open));
    more.textContent = open ? `Show the first ${SHOWN_BARS}` : `Show all ${sorted.length} options`;
    list.replaceChildren(...(open ? sorted : sorted.slice(0, SHOWN_BARS)).map(bar));
  });
  return make("div", {}, list, more, legend);
}

const at = (p) => `${(100 * p).toFixed(3)}%`;

function bar(row) {
  const marks = row.members.map((p) => makeSvg("rect", { class: "mark", x: at(p), y: 1, width: 3, height: 16 }));
  const drawing = makeSvg(
    "svg",
    { class: "bar", width: "100%", height: 18, "aria-hidden": "true" },
    makeSvg("rect", { class: "track", width: "100%", y: 4, height: 10, rx: 2 }),
    makeSvg("rect", { class: "fill", width: at(row.p), y: 4, height: 10, rx: 2 }),
    ...marks,
  );
  return make(
    "li",
    {},
    make("span", { className: "name", title: row.description ?? "" }, row.name),
    drawing,
    make("span", { className: "value" }, percent(row.p)),
  );
}

function facts({ answer, rows }) {
  const entries = [];
  if (answer.x_prediction_set !== null) {
    const fitting = rows.filter((row) => row.fits).map((row) => row.name);
    entries.push(["Prediction set", fitting.length ? fitting.join(", ") : "empty: no option fits as right ones usually do"]);
  }
  const most = Math.log(Math.min(rows.length, rows[0].members.length));
  if (most > 0) {
    const value = `${answer.x_mutual_information.toFixed(3)} nats (0 if all members agree, at most ${most.toFixed(2)})`;
    entries.push(["Mutual information", value]);
  } else if (answer.x_information_predicted) {
    const value = `${answer.x_mutual_information.toFixed(3)} nats, predicted for the ensemble that taught this member`;
    entries.push(["Mutual information", value]);
  }
  return make("dl", {}, ...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

// A row per option, in the order of the question, and a column per member.
function memberTable({ rows }) {
  const head = make("tr", {}, make("th", { scope: "col" }, "Member"));
  head.append(...rows[0].members.map((_, member) => make("th", { scope: "col" }, member)));
  const body = rows.map((row) =>
    make("tr", {}, make("th", { scope: "row" }, row.name), ...row.members.map((p) => make("td", {}, percent(p)))),
  );
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  const box = { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Probabilities per member" };
  return make("details", {}, make("summary", {}, "Probabilities per member"), make("div", box, table));
}

function correction({ question, answer, rows, best }, save) {
  const select = make("select", { id: newId() });
  select.append(...rows.map((row) => make("option", { value: row.name, selected: row === best }, row.name)));
  const button = make("button", { type: "submit", className: "small" }, "Save");
  const result = make("span", { role: "status", className: "quiet" });
  const form = make(
    "form",
    { className: "correct row" },
    make("label", { htmlFor: select.id }, "Right answer"),
    select,
    button,
    result,
    make("p", { className: "quiet" }, "Save predictions that are right, too: errors alone are no fair sample."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await save(question, select.value, best.name);
      select.disabled = true;
      result.textContent = `Saved: ${select.value}.`;
    } catch (error) {
      button.disabled = false;
      result.textContent = error.message;
    }
  });
  return form;
}

// Training rows that are similar to the state, or why there are none.
export function similarCard({ rows, reason }) {
  const text = reason ?? (rows.length ? "By TF-IDF: common words, weighted by how rare they are." : "No training row shares a word.");
  const items = rows.map((row) => {
    const labels = Object.entries(row.answers).map(([name, values]) => `${name}: ${values.join(" and ")}`);
    return make(
      "li",
      {},
      make("blockquote", {}, row.text),
      make("p", { className: "quiet" }, `${labels.join(" · ")} (similarity ${row.similarity.toFixed(2)})`),
    );
  });
  return make(
    "section",
    { className: "card", "aria-label": "Similar training rows" },
    make("h2", {}, "Similar training rows"),
    make("p", { className: "quiet" }, text),
    make("ol", { className: "similar" }, ...items),
  );
}
