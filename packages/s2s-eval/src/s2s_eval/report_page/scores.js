// ---- header, tiles, tables of scores
function showHeader() {
  byId("run").append(data.run);
  const parts = [data.step === null ? "no validation was scored yet" : `step ${data.step}`];
  const names = { asr: "ASR", bleu: "BLEU", quality: "quality", speaker_similarity: "speakers" };
  for (const [key, title] of Object.entries(names)) {
    if (data.about[key] && data.about[key] !== "none") parts.push(`${title} ${data.about[key]}`);
  }
  byId("about").append(parts.join(" · "));
  const newest = data.validations[data.validations.length - 1];
  if (newest && location.pathname.includes("/samples/")) byId("about").append(" · ", link(ROOT + "report.html", "newest report"));
}

// the page lies in the run's folder or in samples/step_N of it
const ROOT = /\/samples\/step_\d+\/[^/]*$/.test(location.pathname) ? "../../" : "";
function link(address, text) {
  const node = el("a", text);
  node.href = address;
  return node;
}

function previousMetrics() {
  const index = data.validations.findIndex((validation) => validation.step === data.step);
  return index > 0 ? data.validations[index - 1].metrics : null;
}

function showTiles() {
  const before = previousMetrics();
  for (const name of TILES) {
    const metric = METRICS.get(name);
    const value = overall(data.metrics, name);
    if (!isNumber(value)) continue;
    const was = before && overall(before, name);
    let change = null;
    if (isNumber(was)) {
      const by = value - was;
      const isBetter = by * metric.better;
      const sign = by > 0 ? "+" : by < 0 ? "−" : "±";
      change = el(`span.change${isBetter > 0 ? ".good" : isBetter < 0 ? ".bad" : ""}`, sign + Math.abs(by).toFixed(metric.digits));
      change.title = `since the validation before: ${shown(metric, was)}`;
    }
    const tile = el("div.tile", el("span.label", metric.short), el("span.value", shown(metric, value)), change);
    tile.title = metric.title;
    byId("tiles").append(tile);
  }
}

function meter(floor, value, ceiling) {
  const bar = el("div.meter", el("i"), el("i.value"));
  bar.querySelector(".value").style.width = `${Math.min(100, value)}%`;
  for (const mark of [floor, ceiling].filter(isNumber)) {
    const tick = el("b");
    tick.style.left = `calc(${Math.min(100, mark)}% - 1px)`;
    bar.append(tick);
  }
  return bar;
}

function bleuCell(dataset) {
  const [floor, value, ceiling] = ["shuffled", "val", "ceiling"].map((kind) => data.metrics[`${kind}_asr_bleu_${dataset}`]);
  if (!isNumber(value)) return el("td.num", "–");
  const bounds = [isNumber(floor) ? `floor ${fixed(floor)}` : "", isNumber(ceiling) ? `ceiling ${fixed(ceiling)}` : ""];
  return el("td.bleu", el("div.both", el("strong", fixed(value)), el("span.muted.small", bounds.filter(Boolean).join(" · "))),
    meter(floor, value, ceiling));
}

function showScores() {
  const columns = TILES.filter((name) => has(name)).map((name) => METRICS.get(name));
  if (!columns.length) return void byId("scores").append(el("p.none", "No metric was computed yet."));
  const isBleu = (metric) => metric.name === "val_asr_bleu";
  const head = el("tr", el("th", "Data set"), ...columns.map((metric) => {
    const cell = el(isBleu(metric) ? "th" : "th.num", metric.short);
    cell.title = metric.title;
    return cell;
  }));
  const rows = data.datasets.map((ds) => el("tr", el("th", ds), ...columns.map((metric) =>
    isBleu(metric) ? bleuCell(ds) : el("td.num", shown(metric, data.metrics[`${metric.name}_${ds}`])))));
  if (rows.length !== 1) {
    rows.push(el("tr.all", el("th", "all"), ...columns.map((metric) =>
      el(isBleu(metric) ? "td" : "td.num", el("strong", shown(metric, data.metrics[metric.name]))))));
  }
  byId("scores").append(el("div.scroll", el("table", el("thead", head), el("tbody", ...rows))));
  if (has("ceiling_asr_bleu") || has("shuffled_asr_bleu")) {
    byId("scores").append(el("p.muted.small", "Floor: the same speech against another dialogue's answers. Ceiling: the reference speech through the codec."));
  }
}

// ---- all metrics, folded: a row a metric, a column a data set
function metricTable(title, rows) {
  const columns = ["", ...(data.datasets.length === 1 ? [] : data.datasets.map((ds) => `_${ds}`))];
  const value = (metric, suffix) => (suffix ? data.metrics[metric.name + suffix] : overall(data.metrics, metric.name));
  const filled = rows.filter((metric) => columns.some((suffix) => isNumber(value(metric, suffix))));
  if (!filled.length) return null;
  const head = el("tr", el("th", title), ...columns.map((suffix) => el("th.num", suffix.slice(1) || "all")));
  const body = filled.map((metric) => {
    const name = el(metric.better === 0 && !/^val/.test(metric.name) ? "td.sub" : "td", metric.title);
    name.title = metric.name;
    return el("tr", name, ...columns.map((suffix) => el("td.num", shown(metric, value(metric, suffix)))));
  });
  return el("div.scroll", el("table.metrics", el("thead", head), el("tbody", ...body)));
}

function codebookTable() {
  const accuracy = (ds, k) => data.metrics[`val_code_accuracy_${ds}_k${k}`];
  let books = 0;
  while (data.datasets.some((ds) => isNumber(accuracy(ds, books)))) books += 1;
  if (!books) return null;
  const head = el("tr", el("th", "Codes right by codebook, %"), ...data.datasets.map((ds) => el("th.num", ds)));
  const rows = [...Array(books).keys()].map((k) =>
    el("tr", el("td", `codebook ${k}`), ...data.datasets.map((ds) => el("td.num", fixed(accuracy(ds, k))))));
  return el("div.scroll", el("table.metrics", el("thead", head), el("tbody", ...rows)));
}

// metrics that this page has no title for
function otherMetrics() {
  const suffixes = ["", ...data.datasets.map((ds) => `_${ds}`)];
  const known = new Set([...METRICS.keys()].flatMap((name) => suffixes.map((suffix) => name + suffix)));
  const others = Object.keys(data.metrics).filter((name) => !known.has(name) && !/_k\d+$/.test(name)).sort();
  if (!others.length) return null;
  const rows = others.map((name) => el("tr", el("td", name), el("td.num", fixed(data.metrics[name], 3))));
  return el("div.scroll", el("table.metrics", el("thead", el("tr", el("th", "Others"), el("th.num", "value"))), el("tbody", ...rows)));
}

function showAllMetrics() {
  const tables = METRIC_GROUPS.map(([title, specs]) => metricTable(title, specs.map(([name]) => METRICS.get(name))));
  const found = [...tables, codebookTable(), otherMetrics()].filter(Boolean);
  byId("all-metrics").querySelector(".body").append(...found);
  byId("all-metrics").hidden = !found.length;
}

// ---- all validations so far
function showValidations() {
  const columns = TILES.map((name) => METRICS.get(name))
    .filter(({ name }) => data.validations.some(({ metrics }) => isNumber(overall(metrics, name))));
  const head = el("tr", el("th.num", "Step"), ...columns.map((metric) => el("th.num", metric.short)), el("th", "Page"));
  const rows = [...data.validations].reverse().map(({ step, metrics, page }) => {
    const isThis = step === data.step;
    return el(isThis ? "tr.this" : "tr", el("td.num", String(step)),
      ...columns.map((metric) => el("td.num", shown(metric, overall(metrics, metric.name)))),
      el("td", isThis ? "this one" : page ? link(ROOT + page, "listen") : el("span.none", "none")));
  });
  const table = el("table", el("thead", head), el("tbody", ...rows));
  byId("validations").querySelector(".body").append(el("div.scroll.tall", table));
  byId("validations").querySelector("summary").append(` (${rows.length})`);
  byId("validations").hidden = !rows.length;
}
