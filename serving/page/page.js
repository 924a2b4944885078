// One question to this service and its answer as a picture. No library, nothing from elsewhere; text goes in as text, never as HTML.
"use strict";

const FIELDS = {
  glucose_lowering: [
    { kind: "sex" }, { kind: "birth" },
    { loinc: "59261-8", unit: "mmol/mol", label: "HbA1c, mmol/mol", required: true },
    { loinc: "98979-8", unit: "mL/min/{1.73_m2}", label: "eGFR, mL/min/1.73 m²" },
    { loinc: "39156-5", unit: "kg/m2", label: "BMI, kg/m²" },
    { loinc: "1742-6", unit: "U/L", label: "ALT, U/L" },
    { loinc: "8480-6", unit: "mm[Hg]", label: "Systolic blood pressure, mmHg" },
    { kind: "since", snomed: "44054006", label: "Type 2 diabetes since (year)", required: true },
    { kind: "condition", snomed: "53741008", label: "Atherosclerotic disease" },
    { kind: "condition", snomed: "84114007", label: "Heart failure" },
    { kind: "condition", snomed: "64859006", label: "Osteoporosis" },
    { kind: "drug", rxnorm: "6809", label: "Takes metformin", checked: true },
    { kind: "pregnancy" }, { kind: "allergy" },
  ],
  warfarin: [
    { kind: "sex" }, { kind: "birth" },
    { loinc: "29463-7", unit: "kg", label: "Weight, kg" },
    { loinc: "8302-2", unit: "cm", label: "Height, cm" },
    { loinc: "6301-6", unit: "{INR}", label: "INR" },
    { kind: "condition", snomed: "84114007", label: "Heart failure" },
    { kind: "pregnancy" }, { kind: "allergy" },
  ],
};
const MATTERS = { weight_change: "Weight gain", hypoglycaemia: "Hypoglycaemia", injection: "Injections", cost: "Cost", adverse_effects: "Adverse effects" };
const SYSTEM = { loinc: "http://loinc.org", snomed: "http://snomed.info/sct", rxnorm: "http://www.nlm.nih.gov/research/umls/rxnorm" };
const at = (id) => document.getElementById(id);
let decision = "";

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

function drawn(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function list(texts, name = "") {
  return make("ul", name ? { class: name } : {}, ...texts.map((text) => make("li", {}, text)));
}

function fields() {
  const shown = FIELDS[decision];
  at("enter").hidden = !shown;
  const year = new Date().getFullYear();
  const kinds = {
    sex: () => make("label", {}, "Sex", make("select", { name: "sex" }, make("option", { value: "female" }, "female"), make("option", { value: "male" }, "male"))),
    birth: () => make("label", {}, "Year of birth", make("input", { name: "birth", type: "number", min: year - 110, max: year - 18, required: "" })),
    since: (f) => make("label", {}, f.label, make("input", { name: f.snomed, type: "number", min: 1930, max: year, required: "" })),
    condition: (f) => make("label", {}, make("input", { name: f.snomed, type: "checkbox" }), f.label),
    drug: (f) => make("label", {}, make("input", { name: f.rxnorm, type: "checkbox", ...(f.checked ? { checked: "" } : {}) }), f.label),
    pregnancy: () => make("label", {}, make("input", { name: "not-pregnant", type: "checkbox" }), "Not pregnant (asked within 30 days)"),
    allergy: () => make("label", {}, make("input", { name: "no-allergy", type: "checkbox" }), "No known allergy (asked)"),
  };
  const lab = (f) => make("label", {}, f.label, make("input", { name: f.loinc, type: "number", step: "any", ...(f.required ? { required: "" } : {}) }));
  at("fields").replaceChildren(...(shown || []).map((f) => (f.kind ? kinds[f.kind](f) : lab(f))));
}

function preferences() {
  const chosen = {};
  for (const input of at("weights").querySelectorAll("input")) if (Number(input.value) > 0) chosen[input.name] = Number(input.value);
  return Object.keys(chosen).length ? { preferences: chosen } : {};
}

function coded(system, code) { return { coding: [{ system: SYSTEM[system], code }] }; }

function bundle(form) {
  const now = new Date().toISOString();
  const subject = { reference: "Patient/entered" };
  const given = new FormData(form);
  const resources = [{ resourceType: "Patient", id: "entered", gender: given.get("sex"), birthDate: given.get("birth") }];
  const observed = (concept, rest) => ({ resourceType: "Observation", status: "final", subject, code: concept, effectiveDateTime: now, issued: now, ...rest });
  const condition = (code, onsetDateTime) => ({
    resourceType: "Condition", subject, code: coded("snomed", code), onsetDateTime, recordedDate: onsetDateTime,
    clinicalStatus: { coding: [{ system: "http://terminology.hl7.org/CodeSystem/condition-clinical", code: "active" }] },
  });
  for (const f of FIELDS[decision]) {
    const value = given.get(f.loinc || f.snomed || f.rxnorm || { pregnancy: "not-pregnant", allergy: "no-allergy" }[f.kind] || "");
    if (!value) continue;
    if (f.loinc) resources.push(observed(coded("loinc", f.loinc), { valueQuantity: { value: Number(value), unit: f.unit, system: "http://unitsofmeasure.org", code: f.unit } }));
    if (f.kind === "since") resources.push(condition(f.snomed, value));
    if (f.kind === "condition") resources.push(condition(f.snomed, now));
    if (f.kind === "drug") resources.push({ resourceType: "MedicationRequest", status: "active", intent: "order", subject, authoredOn: now, medicationCodeableConcept: coded("rxnorm", f.rxnorm) });
    if (f.kind === "pregnancy") resources.push(observed(coded("loinc", "82810-3"), { valueCodeableConcept: coded("snomed", "60001007") }));
    if (f.kind === "allergy") resources.push({ resourceType: "AllergyIntolerance", patient: subject, code: coded("snomed", "716186003"), recordedDate: now });
  }
  resources.forEach((resource, n) => { resource.id = resource.id || `entered-${n}`; });
  return { resourceType: "Bundle", type: "collection", entry: resources.map((resource) => ({ resource })) };
}

function chart(told) {
  const left = 250, right = 880, step = 46, top = 34, height = top + step * told.ranked.length + 26;
  const bounds = told.ranked.flatMap((o) => [o.low, o.high, 0]);
  const low = Math.min(...bounds) - 0.5, high = Math.max(...bounds) + 0.5;
  const x = (value) => left + ((value - low) / (high - low)) * (right - left);
  const picture = drawn("svg", { viewBox: `0 0 960 ${height}`, role: "img", id: "chart", "aria-label": "Expected difference of each option to the first, with its 95 % interval" });
  picture.append(drawn("text", { x: left, y: 16, class: "small" }, `difference to the first option, ${told.unit}, 95 % interval (${told.better} is better)`));
  picture.append(drawn("line", { x1: x(0), x2: x(0), y1: top - 8, y2: height - 22, stroke: "#5b6872", "stroke-dasharray": "4 4" }));
  told.ranked.forEach((o, n) => {
    const y = top + step * n + 14, close = told.equivalent.includes(o.option), ink = close ? "#0b6e4f" : "#7a8791";
    picture.append(drawn("text", { x: 0, y: y + 5, "font-weight": close ? 600 : 400 }, o.label.length > 32 ? `${o.label.slice(0, 31)}…` : o.label));
    picture.append(drawn("line", { x1: x(o.low), x2: x(o.high), y1: y, y2: y, stroke: ink, "stroke-width": 4, "stroke-linecap": "round" }));
    picture.append(drawn("circle", { cx: x(o.difference_to_best), cy: y, r: 7, fill: ink, class: "option" }));
    picture.append(drawn("text", { x: 0, y: y + 21, class: "small" }, `expected ${o.outcome.toFixed(1)} ${told.unit}; ${Math.round(100 * o.overlap)} % of comparable patients had it`));
  });
  for (const value of [low + 0.5, 0, high - 0.5]) picture.append(drawn("text", { x: x(value), y: height - 4, class: "small", "text-anchor": "middle" }, value.toFixed(1)));
  return picture;
}

function show(told) {
  const one = told.ranked.find((o) => o.option === told.recommended);
  const parts = [make("p", { class: "quiet" }, `${told.title}, as of ${told.as_of.slice(0, 10)}`)];
  if (one) parts.push(make("p", { class: "verdict one" }, `Recommended: ${one.label}`));
  else parts.push(make("p", { class: `verdict ${told.ranked.length ? "open" : "stop"}` }, `No single recommendation: ${told.abstained}`));
  if (told.dose_mg_week !== null) parts.push(make("p", {}, `Expected dose: ${told.dose_mg_week.toFixed(1)} mg a week`));
  if (told.ranked.length) parts.push(chart(told));
  parts.push(list(told.reasons));
  const why = told.ranked.filter((o) => o.reason);
  if (why.length) parts.push(make("h3", {}, "Why"), list(why.map((o) => `${o.label}: ${o.reason}`)));
  if (told.preferred.length) parts.push(make("h3", {}, "In the patient's order"), list(told.preferred.map((o) => `${o.label}: ${o.reason}`)));
  const out = (name) => (e) => `${name(e)} (${e.code}): ${e.reason}${e.source ? ` Source: ${e.source}` : ""}`;
  if (told.excluded.length) parts.push(make("h3", {}, "Not offered"), list(told.excluded.map(out((e) => e.label)), "excluded"));
  if (told.ruled_out.length) parts.push(make("h3", {}, "Drugs not to be given"), list(told.ruled_out.map(out((e) => e.drug)), "excluded"));
  if (told.changes.length) parts.push(make("details", {}, make("summary", {}, "What would change this answer"), list(told.changes)));
  const missing = [...told.not_known, ...told.stale.map((name) => `${name} (too old)`)];
  if (missing.length) parts.push(make("details", {}, make("summary", {}, `Not known or too old: ${missing.length}`), list(missing)));
  if (told.notes.length) {
    const notes = told.notes.map((n) => `${n.option ? `${n.option}, ` : ""}${n.kind}: ${n.text}${n.source ? ` (${n.source})` : ""}${n.reviewed ? "" : " [threshold not yet compared with its source]"}`);
    parts.push(make("details", {}, make("summary", {}, `Remarks of the safety rules: ${notes.length}`), list(notes)));
  }
  parts.push(make("p", { class: "quiet" }, `decision ${told.decision} ${told.decision_version}, model ${told.model_version}, rules ${told.ruleset_version}`));
  at("answer").replaceChildren(...parts);
  at("note").textContent = told.note;
}

async function ask(instance, form) {
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const reply = await fetch(`/v1/models/${decision}:predict`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ instances: [{ ...instance, ...preferences() }] }) });
    const told = await reply.json();
    if (reply.ok) show(told.predictions[0]);
    else at("answer").replaceChildren(make("p", { class: "verdict stop" }, `No answer (${reply.status})`), make("p", {}, told.detail || ""));
  } catch {
    at("answer").replaceChildren(make("p", { class: "verdict stop" }, "The service can't be reached."));
  } finally {
    button.disabled = false;
  }
}

at("by-id").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ patient_id: new FormData(event.target).get("patient") }, event.target);
});
at("by-hand").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ bundle: bundle(event.target) }, event.target);
});
at("weights").replaceChildren(...Object.entries(MATTERS).map(([name, label]) => make("label", {}, label, make("input", { name, type: "range", min: 0, max: 1, step: 0.25, value: 0 }))));
fetch("/v1/models").then((reply) => reply.json()).then((told) => { [decision] = told.models; fields(); });
