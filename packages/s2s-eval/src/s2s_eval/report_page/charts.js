// ---- curves over the steps
const [CHART_WIDTH, CHART_HEIGHT, CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM] = [500, 170, 40, 8, 8, 20];

function range(series, from_zero) {
  const all = series.flatMap((one) => one.points);
  const [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (from_zero) y0 = Math.min(0, y0);
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  return { x0, x1, y0, y1 };
}

// heights from 0 to 1 and what is written beside them; a loss that falls by far is drawn on a logarithmic scale
function scale({ y0, y1 }, from_zero) {
  const isLog = !from_zero && y0 > 0 && y1 / y0 > 100;
  const [to, back] = isLog ? [Math.log, Math.exp] : [(value) => value, (value) => value];
  const digits = y1 - y0 < 2 ? 2 : y1 - y0 < 20 ? 1 : 0;
  const ticks = [0, 0.5, 1].map((share) => back(to(y0) + share * (to(y1) - to(y0))));
  return {
    isLog, height: (value) => (to(value) - to(y0)) / (to(y1) - to(y0)),
    ticks: ticks.map((value) => [value, isLog ? small(value) || String(Number(value.toPrecision(2))) : fixed(value, digits)]),
  };
}
const small = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(0) : null);

function chart({ title, from_zero, series }) {
  const limits = range(series, from_zero);
  const { x0, x1 } = limits;
  const { isLog, height, ticks } = scale(limits, from_zero);
  const right = CHART_WIDTH - CHART_RIGHT;
  const x = (step) => (x1 === x0 ? right : CHART_LEFT + ((step - x0) / (x1 - x0)) * (right - CHART_LEFT));
  const y = (value) => CHART_TOP + (1 - height(value)) * (CHART_HEIGHT - CHART_TOP - CHART_BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${CHART_WIDTH} ${CHART_HEIGHT}`, role: "img", "aria-label": title });
  for (const [value, label] of ticks) {
    picture.append(svg("line", { x1: CHART_LEFT, x2: right, y1: y(value), y2: y(value), stroke: "var(--line)" }));
    picture.append(svg("text", { x: CHART_LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, label));
  }
  if (x1 > x0) picture.append(svg("text", { x: CHART_LEFT, y: CHART_HEIGHT - 4 }, `step ${x0}`));
  picture.append(svg("text", { x: right, y: CHART_HEIGHT - 4, "text-anchor": "end" }, x1 > x0 ? String(x1) : `step ${x1}`));
  const legend = el("ul.legend");
  const own = ["all", ...data.datasets]; // a data set has one color in all charts, and a ceiling that of what it bounds
  const labels = own.includes(series[0].label) ? own : series.map(({ label }) => label);
  for (const { label, is_ceiling, points } of series) {
    const color = `var(--s${labels.indexOf(label) % 6})`;
    const path = points.map(([step, value], k) => `${k ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`);
    picture.append(svg("path", {
      d: path.join(""), fill: "none", stroke: color, "stroke-width": 1.8, "stroke-dasharray": is_ceiling ? "4 3" : "none",
      "stroke-linejoin": "round",
    }));
    const [step, value] = points[points.length - 1];
    picture.append(svg("circle", { cx: x(step), cy: y(value), r: 2.6, fill: color }));
    if (is_ceiling) continue; // the caption says what is dashed
    const swatch = el("span.swatch");
    swatch.style.borderTopColor = color;
    legend.append(el("li", swatch, `${label} `, el("strong", small(value) || fixed(value, from_zero && limits.y1 > 20 ? 1 : 3))));
  }
  const note = series.some((one) => one.is_ceiling) ? el("span.muted.small", " dashed: the codec's ceiling")
    : isLog ? el("span.muted.small", " logarithmic") : null;
  return el("figure", el("figcaption", title, note), picture, legend);
}

function showCharts() {
  byId("charts").append(...data.charts.filter((one) => one.is_main).map(chart));
  const more = data.charts.filter((one) => !one.is_main);
  byId("more-charts").querySelector(".body").append(...more.map(chart));
  byId("more-charts").hidden = !more.length;
  if (!data.charts.length) byId("charts").append(el("p.none", "Nothing was logged yet."));
}
