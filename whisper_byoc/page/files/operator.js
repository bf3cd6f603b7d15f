// The operator's view: what the server says of itself, every two seconds while somebody looks.

const EVERY_MS = 2000;

export class Operator {
  #server;
  #figures;
  #details;
  #timer = 0;

  constructor(server, figures, details) {
    this.#server = server;
    this.#figures = figures;
    this.#details = details;
  }

  watch(on) {
    clearInterval(this.#timer);
    if (!on) return;
    this.#refresh();
    this.#timer = setInterval(() => this.#refresh(), EVERY_MS);
  }

  async #refresh() {
    const show = this.#server.role === "gateway" ? this.#showGateway : this.#showContainer;
    try {
      await show.call(this);
    } catch {
      this.#show([["server", "no answer"]]);
      this.#table([], []);
    }
  }

  async #showContainer() {
    const [ready, text] = await Promise.all([json("readyz"), fetch("metrics").then((answer) => answer.text())]);
    const metrics = parse(text);
    const lag = quantile(metrics, "byoc_text_lag_seconds_bucket", { kind: "final" }, 0.95);
    this.#show([
      ["state", state(ready)],
      ["jobs", sum(metrics, "byoc_sessions_active")],
      ["free places", ready.free],
      ["waiting segments", sum(metrics, "byoc_segments_queued")],
      ["final text after its sound (p95)", lag === null ? "–" : `≤ ${lag} s`],
      ["segments done", sum(metrics, "byoc_segment_duration_seconds_count")],
      ["errors", sum(metrics, "byoc_errors_total")],
      ["refused", sum(metrics, "byoc_refusals_total")],
    ]);
    const of = (name, pipeline) => metrics.find(([each, labels]) => each === name && labels.pipeline === pipeline)?.[2] ?? 0;
    const measured = metrics.filter(([name]) => name === "byoc_live_capacity").map(([, { pipeline }, fit]) => [
      pipeline, `${of("byoc_live_jobs", pipeline)} of ${fit}`,
      `${Math.round(100 * of("byoc_live_load_ratio", pipeline))} %`, `${of("byoc_live_delay_seconds", pipeline).toFixed(1)} s`,
    ]);
    this.#table(["pipeline", "live streams", "load", "delay"], measured);
  }

  async #showGateway() {
    const [ready, status, offered] = await Promise.all([json("readyz"), json("status"), json("capabilities")]);
    this.#show([["state", state(ready)], ["jobs", status.jobs], ["streams", status.streams]]);
    this.#table(["pipeline", "free places"], offered.capabilities.map(({ name, available }) => [name, available]));
  }

  #show(figures) {
    this.#figures.replaceChildren(...figures.map(([name, value]) => {
      const group = document.createElement("div");
      group.append(element("dt", name), element("dd", value));
      return group;
    }));
  }

  #table(heads, rows) {
    this.#details.hidden = !rows.length;
    this.#details.tHead.replaceChildren(row(heads, "th"));
    this.#details.tBodies[0].replaceChildren(...rows.map((cells) => row(cells, "td")));
  }
}

function state({ ready, reasons }) {
  return ready ? "ready" : reasons.join("; ");
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function row(cells, name) {
  const made = document.createElement("tr");
  made.append(...cells.map((cell) => element(name, cell)));
  return made;
}

async function json(path) {
  return (await fetch(path)).json();
}

/** Read Prometheus' text form: a list of `[name, labels, value]`. */
function parse(text) {
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return lines.map((line) => {
    const [, name, labels = "", value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/);
    return [name, Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, key, its]) => [key, its])), Number(value)];
  });
}

function sum(metrics, name) {
  return metrics.filter(([each]) => each === name).reduce((total, [, , value]) => total + value, 0);
}

/** Return the upper bound of a histogram's bucket that holds the quantile; null without values. */
function quantile(metrics, name, wanted, share) {
  const counts = new Map();
  for (const [each, labels, value] of metrics) {
    if (each !== name || Object.entries(wanted).some(([label, its]) => labels[label] !== its)) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  const all = counts.get(Infinity) ?? 0;
  const bounds = [...counts.keys()].sort((a, b) => a - b);
  return all ? bounds.find((bound) => counts.get(bound) >= share * all) : null;
}
