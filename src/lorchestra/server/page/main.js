// The page: which run, what is asked of it, and what comes back. The key is in this module's memory only.

import { answerCard, inWords, read, similarCard } from "./answers.js";
import { byId } from "./dom.js";
import { Editor, questionJson, trainedFields, trainedQuestions } from "./form.js";

let key = "";
let runs = [];
let savesCorrections = false;
let trained = { asked: () => [] };
let editors = [];
let numWritten = 0;
let pending = null;

const chosenRun = () => runs[byId("run").selectedIndex];

class Unauthenticated extends Error {}

// The value of a JSON response; an Error with the server's text if it has another status.
async function fetchJson(path, body = null, signal = undefined) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== null) Object.assign(options, { method: "POST", body, headers: { ...headers, "Content-Type": "application/json" } });
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response.json();
  const text = await errorText(response);
  throw response.status === 401 ? new Unauthenticated(text) : new Error(text);
}

async function errorText(response) {
  try {
    const { detail } = await response.json();
    return Array.isArray(detail) ? detail.map((fault) => fault.msg).join("; ") : detail.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function showError(error) {
  byId("error").textContent = error === null ? "" : error.message;
  byId("error").hidden = error === null;
  if (error instanceof Unauthenticated) askForKey(key ? error.message : "");
}

function askForKey(message) {
  byId("key-form").hidden = false;
  byId("columns").hidden = true;
  if (message) byId("key-hint").textContent = message;
  byId("key").focus();
}

async function load() {
  try {
    const answer = await fetchJson("/v1/x_runs");
    runs = answer.runs;
    savesCorrections = answer.saves_corrections;
  } catch (error) {
    if (!(error instanceof Unauthenticated)) byId("columns").hidden = false;
    showError(error);
    return;
  }
  byId("key-form").hidden = true;
  byId("key").value = "";
  byId("columns").hidden = false;
  byId("run").replaceChildren(...runs.map((run) => new Option(run.name)));
  byId("run-field").hidden = runs.length < 2;
  showError(null);
  showRun();
  byId("state").focus();
}

function showRun() {
  pending?.abort();
  const run = chosenRun();
  const facts = [
    ...(runs.length < 2 ? [run.name] : []),
    `${run.num_members} member${run.num_members === 1 ? "" : "s"}`,
    run.calibrated ? "calibrated" : "not calibrated",
    run.certified ? "certified" : "not certified",
  ];
  byId("run-facts").textContent = facts.join(" · ");
  byId("trained").replaceChildren();
  trained = trainedFields(trainedQuestions(run), byId("trained"));
  clearAnswers();
  byId("status").textContent = "";
}

function clearAnswers() {
  byId("answers").replaceChildren();
  byId("similar").replaceChildren();
  showError(null);
}

// The state as JSON text. JSON that a person writes is sent as it is written: parsing would round long numbers.
function stateJson() {
  const text = byId("state").value;
  return byId("as-json").checked ? text : JSON.stringify(text);
}

function isJson(text) {
  if (!/^\s*[[{]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function onState() {
  const could = isJson(byId("state").value);
  if (could === !byId("json-field").hidden) return;
  byId("json-field").hidden = !could;
  byId("as-json").checked = could;
}

// The questions to ask by the id that errors and answers have: their name, with a number where two have the same.
function askedById() {
  const asked = new Map();
  for (const question of [...trained.asked(), ...editors.map((editor) => editor.question())]) {
    let id = question.name;
    for (let number = 2; asked.has(id); number++) id = `${question.name} (${number})`;
    asked.set(id, { ...question, id });
  }
  return asked;
}

async function ask(event) {
  event.preventDefault();
  if (pending !== null) return;
  const asked = askedById();
  clearAnswers();
  if (!byId("state").value.trim()) return showError(new Error("Write a state: the text that the questions are about."));
  if (!asked.size) return showError(new Error("Tick a question, or write one."));
  const run = chosenRun();
  const state = stateJson();
  const model = JSON.stringify(run.name);
  const questions = [...asked].map(([id, question]) => `${JSON.stringify(id)}:${questionJson(question)}`).join(",");
  const started = performance.now();
  setPending(new AbortController());
  try {
    const body = `{"model":${model},"state":${state},"questions":{${questions}}}`;
    const { answers } = await fetchJson("/v1/systemone", body, pending.signal);
    const shown = [...asked].map(([id, question]) => read(question, answers[id]));
    showAnswers(shown, run, `"model":${model},"state":${state}`);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    showResults();
    byId("status").textContent = `Answered in ${seconds} s. ${shown.map(inWords).join("; ")}.`;
    if (run.shows_training_rows) await showSimilar(`{"model":${model},"state":${state}}`);
  } catch (error) {
    byId("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") showError(error);
  } finally {
    setPending(null);
  }
}

function setPending(controller) {
  pending = controller;
  const isPending = controller !== null;
  byId("ask").disabled = isPending;
  byId("cancel").hidden = !isPending;
  byId("results").setAttribute("aria-busy", String(isPending));
  if (isPending) byId("status").textContent = "Asking ...";
}

function showAnswers(shown, run, start) {
  const save = (question, answer, prediction) => {
    const fields = { question: question.name, answer, prediction };
    return fetchJson("/v1/x_corrections", `{${start},${JSON.stringify(fields).slice(1)}`);
  };
  byId("answers").replaceChildren(
    ...shown.map((one) => answerCard(one, run, savesCorrections && one.question.trained ? save : null)),
  );
}

// On a narrow screen the answers are below the form.
function showResults() {
  const box = byId("results").getBoundingClientRect();
  if (box.top < window.innerHeight / 2) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("results").scrollIntoView({ block: "start", behavior: isStill ? "auto" : "smooth" });
}

// The answers stay as they are if this fails.
async function showSimilar(body) {
  try {
    byId("similar").replaceChildren(similarCard(await fetchJson("/v1/x_similar", body, pending.signal)));
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

function write() {
  const editor = new Editor(++numWritten, byId("written"), (removed) => {
    editors = editors.filter((one) => one !== removed);
    byId("write").focus();
  });
  editors.push(editor);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  load();
});
byId("run").addEventListener("change", showRun);
byId("state").addEventListener("input", onState);
byId("write").addEventListener("click", write);
byId("ask-form").addEventListener("submit", ask);
byId("ask-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(event);
});
byId("cancel").addEventListener("click", () => pending?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") pending?.abort();
});
load();
