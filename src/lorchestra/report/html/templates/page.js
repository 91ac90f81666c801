// The threshold below which the ensemble abstains; the table next to it works without scripts.
for (const slider of document.querySelectorAll(".slider")) {
  const curve = JSON.parse(slider.dataset.curve);
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  const probe = document.getElementById(slider.dataset.probe);
  const show = () => {
    const k = Number(input.value);
    const threshold = k / (curve.answered.length - 1);
    const answered = curve.answered[k];
    const wrong = curve.wrong[k];
    const share = (part, whole) => (100 * part / whole).toFixed(1) + " %";
    output.textContent = "Abstain below " + threshold.toFixed(3) + ": answers " + share(answered, curve.rows) + " of the rows; " +
      (answered ? share(answered - wrong, answered) + " of these are right, " + wrong + " of " + answered + " wrong; " : "") +
      (curve.rows - answered) + " go to a person.";
    probe.toggleAttribute("hidden", !answered);
    if (answered) {
      const x = curve.left + (curve.right - curve.left) * answered / curve.rows;
      const y = curve.floor - (curve.floor - curve.top) * wrong / answered / curve.most;
      probe.querySelector("path").setAttribute("d", "M" + x + " " + curve.floor + "V" + curve.top);
      probe.querySelector("circle").setAttribute("cx", x);
      probe.querySelector("circle").setAttribute("cy", y);
    }
  };
  slider.hidden = false;
  input.addEventListener("input", show);
  show();
}
// On paper, details cannot be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
