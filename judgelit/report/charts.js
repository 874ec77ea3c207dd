// Curves of training and of calibration, drawn by uPlot.

const drawn = [];

function colour(name) {
  const probe = make("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
function format(unit, value) {
  if (value === null || value === undefined) return "";
  if (unit === "share") return `${Math.round(1000 * value) / 10}%`;
  if (unit === "count") return SHORT.format(value);
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

// Lines with steps of their own on common ones: [steps, values or null, ...].
function aligned(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const places = new Map(steps.map((step, place) => [step, place]));
  return [steps, ...lines.map((line) => {
    const values = new Array(steps.length).fill(null);
    line.x.forEach((step, at) => { values[places.get(step)] = line.y[at]; });
    return values;
  })];
}

function axes(unit, unitX, size) {
  const common = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return [
    { ...common, grid: { show: false }, size: 24, gap: 4, space: 60, values: (_, values) => values.map((value) => format(unitX, value)) },
    { ...common, size, gap: 6, space: 34, values: (_, values) => values.map((value) => format(unit, value)) },
  ];
}

// On paper the page has another width than in the window, and there is no time to draw again.
const isPaper = () => document.documentElement.dataset.paper !== undefined;
const widthOf = (box) => (isPaper() ? (box.closest(".charts") ? 280 : 620) : Math.max(100, box.clientWidth));

function draw(box, options, series, label) {
  const chart = new uPlot({
    width: widthOf(box), height: box.clientHeight, legend: { show: false },
    cursor: { y: false, points: { size: 7 } }, ...options,
  }, series, box);
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  drawn.push(chart);
}

function trainingChart(box) {
  const chart = data.fits[box.dataset.fit].charts[box.dataset.chart];
  const series = aligned(chart.lines);
  const all = chart.lines.flatMap((line) => line.y);
  const smallest = all.reduce((a, b) => Math.min(a, b));
  const largest = all.reduce((a, b) => Math.max(a, b));
  const isLog = chart.title === "Loss" && smallest > 0 && largest > 30 * smallest;
  const heading = box.parentElement.querySelector("h4");
  if (isLog && !heading.dataset.log) heading.append(make("span", "quiet", " on a logarithmic axis"));
  if (isLog) heading.dataset.log = "yes";
  const outputs = box.parentElement.querySelectorAll("output");
  const say = (place) => chart.lines.forEach((line, number) => {
    const value = place === null ? line.y.at(-1) : series[number + 1][place];
    if (value !== null && value !== undefined) outputs[number].textContent = format(chart.unit, value);
  });
  say(null);
  const scale = isLog ? { distr: 3 } : { range: chart.unit === "share" ? [0, 1] : (_, low, high) => padded(chart.unit === "count" ? 0 : low, high) };
  draw(box, {
    scales: { x: { time: false }, y: scale },
    axes: axes(chart.unit, "count", 44),
    series: [{}, ...chart.lines.map((line, number) => ({
      stroke: colour(["--c2", "--c1", "--c3", "--c4", "--c5", "--c6", "--c7", "--c0"][number % 8]), width: 1.75, spanGaps: true,
      points: { show: line.x.length < 12, size: 6 },
    }))],
    hooks: { setCursor: [(plot) => say(plot.cursor.idx ?? null)] },
  }, series, `${chart.title}: ${chart.lines.map((line) => `${line.name} from ${format(chart.unit, line.y[0])} to ${format(chart.unit, line.y.at(-1))}`).join("; ")}`);
}

function padded(low, high) {
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low === 0 ? 0 : low - room, high + room];
}

function calibrationChart(box) {
  const found = data.calibration[box.dataset.calibration];
  const lines = found.curves.map((curve) => ({ x: curve.bins.map((bin) => bin.confidence), y: curve.bins.map((bin) => bin.accuracy) }));
  const series = aligned([{ x: [0.5, 1], y: [0.5, 1] }, ...lines]);
  draw(box, {
    scales: { x: { time: false, range: [0.49, 1.01] }, y: { range: [0, 1.02] } },
    axes: axes("share", "share", 44),
    series: [{}, { stroke: colour("--strong-line"), width: 1, dash: [2, 4], spanGaps: true, points: { show: false } },
      ...found.curves.map((curve) => ({
        stroke: colour(`--c${judgeColour(curve.judge).slice(1)}`), width: 1.75, spanGaps: true,
        points: { show: true, size: 6, fill: colour(`--c${judgeColour(curve.judge).slice(1)}`) },
      }))],
  }, series, `Accuracy by confidence, ${found.set}: ${found.curves.map((curve) => `${data.judges[curve.judge]} has a calibration error of ${curve.ece}`).join("; ")}`);
}

function drawOne(box) {
  (box.dataset.fit === undefined ? calibrationChart : trainingChart)(box);
}

// Draw a chart when it comes into view, and all drawn ones again when the colours change.
const whenSeen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    whenSeen.unobserve(target);
    drawOne(target);
  }
}, { rootMargin: "400px" });

function drawCharts() {
  for (const chart of drawn.splice(0)) chart.destroy();
  for (const box of document.querySelectorAll(".chart")) {
    whenSeen.unobserve(box);
    if (isPaper()) drawOne(box);
    else whenSeen.observe(box);
  }
}

// Before printing all charts are drawn, in light colours.
function setPaper(on) {
  if (on === isPaper()) return;
  if (on) document.documentElement.dataset.paper = "";
  else delete document.documentElement.dataset.paper;
  drawCharts();
}
addEventListener("beforeprint", () => setPaper(true));
addEventListener("afterprint", () => setPaper(false));
matchMedia("print").addEventListener("change", (event) => setPaper(event.matches));

new ResizeObserver(() => {
  if (isPaper()) return;
  for (const chart of drawn) {
    const box = chart.root.parentElement;
    if (Math.abs(box.clientWidth - chart.width) > 1) chart.setSize({ width: widthOf(box), height: box.clientHeight });
  }
}).observe(document.body);
