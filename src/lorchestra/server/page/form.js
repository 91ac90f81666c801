// Questions: those that a run was trained on, and those that a person writes. A question here is
// {name, type, instructions, options: [{name, description}], trained}.

import { make, newId } from "./dom.js";

const NOUN = { choice: "option", predicate: "side", score: "level" };
const ADD = { choice: "Add an option", score: "Add a level" };
const MOST = { choice: 255, score: 10 };
const SHOWN_OPTIONS = 6;

// The questions of a run's entry in /v1/x_runs.
export function trainedQuestions(run) {
  return Object.entries(run.questions).map(([name, entry]) => ({
    name,
    type: entry.type,
    instructions: entry.instructions,
    options: optionsOf(entry),
    trained: true,
  }));
}

function optionsOf(entry) {
  const described = entry.type === "predicate" ? entry : entry.options ?? entry.levels;
  return entry.order.map((name) => ({ name, description: Array.isArray(described) ? null : described[name] ?? null }));
}

// The question as JSON text in the format of /v1/systemone. The text is put together by hand: an object would sort names
// that are integers, and the members' probabilities come in the order of the text.
export function questionJson(question) {
  const { type, instructions, options } = question;
  const text = JSON.stringify;
  const descriptions = options.map((option) => option.description);
  const described = (kept) => `{${kept.map(({ name, description }) => `${text(name)}:${text(description)}`).join(",")}}`;
  const start = `"instructions":${text(instructions)},"criteria":`;
  if (type === "choice") return `{"type":"choice",${start}${described(options)}}`;
  if (type === "predicate") {
    return `{"type":"noul",${start}${described(options.filter((option) => option.description !== null))}}`;
  }
  const names = text(options.map((option) => option.name));
  const more = descriptions.some((one) => one !== null) ? `,"x_descriptions":${text(descriptions)}` : "";
  return `{"type":"score",${start}${names}${more}}`;
}

// A checkbox per trained question; the result has `asked()`.
export function trainedFields(questions, container) {
  const boxes = questions.map((question) => {
    const box = make("input", { type: "checkbox", checked: true });
    const names = question.options.map((option) => option.name);
    const more = names.length > SHOWN_OPTIONS ? `, ... (${names.length})` : "";
    const shown = question.type === "predicate" ? "true or false" : names.slice(0, SHOWN_OPTIONS).join(", ") + more;
    container.append(
      make(
        "label",
        { className: "check question" },
        box,
        make(
          "span",
          {},
          make("b", {}, question.name),
          make("span", { className: "quiet" }, ` ${question.type}: ${shown}`),
          question.instructions ? make("span", { className: "instructions" }, question.instructions) : null,
        ),
      ),
    );
    return box;
  });
  return { asked: () => questions.filter((_, index) => boxes[index].checked) };
}

// A form for a question that a person writes, appended to a container.
export class Editor {
  constructor(number, container, onRemove) {
    this.number = number;
    this.type = make("select", { id: newId() });
    for (const type of Object.keys(NOUN)) this.type.append(make("option", { value: type }, type));
    this.instructions = make("textarea", { id: newId(), rows: 2 });
    this.rows = make("div", { className: "options" });
    this.add = make("button", { type: "button", className: "plain small" });
    this.add.addEventListener("click", () => this.addRow().querySelector("input").focus());
    this.type.addEventListener("change", () => this.showType());
    const remove = make("button", { type: "button", className: "plain small" }, "Remove the question");
    remove.addEventListener("click", () => {
      this.element.remove();
      onRemove(this);
    });
    this.element = make(
      "fieldset",
      { className: "card editor" },
      make("legend", {}, this.name),
      make("div", { className: "field" }, make("label", { htmlFor: this.type.id }, "Type"), this.type),
      make("div", { className: "field" }, make("label", { htmlFor: this.instructions.id }, "Instructions"), this.instructions),
      this.rows,
      make("div", { className: "row" }, this.add, remove),
    );
    container.append(this.element);
    this.showType();
    this.type.focus();
  }

  get name() {
    return `Question ${this.number}`;
  }

  // Fields of the chosen type; what was written for another type's options is kept where both have them.
  showType() {
    const type = this.type.value;
    const before = type === "predicate" || this.shown === "predicate" ? [] : this.options();
    this.shown = type;
    this.rows.replaceChildren();
    this.add.hidden = type === "predicate";
    this.add.textContent = ADD[type] ?? "";
    this.instructions.placeholder = {
      choice: "Which queue should answer?",
      predicate: "The customer asks for a refund.",
      score: "How severe is the problem?",
    }[type];
    if (type === "predicate") ["true", "false"].forEach((side) => this.addRow(side));
    else {
      for (const option of before.slice(0, MOST[type])) this.addRow("", option);
      while (this.rows.children.length < 2) this.addRow();
    }
  }

  // A row for an option; a predicate's sides have fixed names.
  addRow(side = "", option = { name: "", description: null }) {
    const number = this.rows.children.length + 1;
    const noun = NOUN[this.shown];
    const label = side === "" ? `${noun[0].toUpperCase()}${noun.slice(1)} ${number}` : side;
    const name = make("input", {
      type: "text",
      value: side || option.name,
      readOnly: side !== "",
      placeholder: label,
      "aria-label": label,
    });
    const description = make("input", {
      type: "text",
      value: option.description ?? "",
      placeholder: "description, if needed",
      "aria-label": `${label}: description`,
    });
    const row = make("div", { className: "option" }, name, description);
    this.rows.append(row);
    this.add.disabled = side === "" && number >= MOST[this.shown];
    return row;
  }

  // The options that have a name; a predicate's in the order false, true.
  options() {
    const rows = [...this.rows.children].map((row) => {
      const [name, description] = row.querySelectorAll("input");
      return { name: name.value.trim(), description: description.value.trim() || null };
    });
    return this.shown === "predicate" ? rows.reverse() : rows.filter((option) => option.name);
  }

  question() {
    return {
      name: this.name,
      type: this.shown,
      instructions: this.instructions.value.trim(),
      options: this.options(),
      trained: false,
    };
  }
}
