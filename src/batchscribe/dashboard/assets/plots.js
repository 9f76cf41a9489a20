// Draws every `figure.plot` from the spec beside it (macros.html describes it) with uPlot, in the page's colours.
"use strict";

(() => {
  const HEIGHT = 240;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = () => [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((n) => color(`--series-${n}`));

  // Sums of each series and all before it, so that areas and bars stand on each other.
  function stack(series) {
    const sums = [];
    return series.map((values) => values.map((value, i) => (sums[i] = (sums[i] || 0) + (value || 0))));
  }

  function format(value, unit) {
    if (value == null) return "–";
    const digits = Math.abs(value) >= 100 ? 0 : 2;
    const text = Math.abs(value) > 0 && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(digits);
    return unit === "$" ? `$${text}` : `${text} ${unit}`.trim();
  }

  // The caption has the unit.
  const formatTick = (value, unit) => `${value < 0 ? "-" : ""}${unit === "$" ? "$" : ""}${Number(Math.abs(value).toPrecision(4))}`;

  // Every n-th tick, so that their names have room.
  function thinOut(ticks, width) {
    const step = Math.ceil((ticks.length * 84) / width);
    return ticks.filter((_, i) => i % step === 0);
  }

  function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const place = figure.querySelector(".canvas");
    const named = spec.x.some((x) => typeof x === "string");
    const xs = named ? spec.x.map((_, i) => i) : spec.x;
    const values = spec.series.map((each) => each.values);
    const shown = spec.stacked ? stack(values) : values;
    const order = spec.series.map((_, i) => (spec.stacked ? spec.series.length - 1 - i : i));
    const colors = palette();
    const paths = spec.kind === "bars" ? uPlot.paths.bars({ size: [0.7, 60] }) : undefined;
    const grid = { stroke: color("--line"), width: 1 };
    const axis = { stroke: color("--muted"), grid, ticks: grid, font: `12px ${color("--font")}` };
    const step = xs.length > 1 ? (xs[xs.length - 1] - xs[0]) / (xs.length - 1) : named || spec.numeric ? 1 : 86400;
    const edge = named || spec.kind === "bars" || xs.length < 2 ? step / 2 : 0;
    const across = (low, high) => (spec.numeric ? [Math.min(0, low), high * 1.05] : [low - edge, high + edge]);
    const options = {
      width: Math.max(260, place.clientWidth),
      height: HEIGHT,
      scales: {
        x: { time: !named && !spec.numeric, range: (_u, low, high) => (xs.length > 1 ? across(low, high) : across(xs[0], xs[0])) },
        y: { range: (_u, low, high) => [Math.min(0, low), (high > 0 ? high : 1) * 1.08] },
      },
      axes: [
        named ? { ...axis, splits: (u) => thinOut(xs, u.width), values: (_u, ticks) => ticks.map((i) => spec.x[i] ?? "") } : axis,
        { ...axis, size: 60, values: (_u, ticks) => ticks.map((tick) => formatTick(tick, spec.unit)) },
      ],
      // Without a pointer that hovers, the values in the legend would stay empty.
      legend: { live: matchMedia("(hover: hover)").matches },
      series: [
        { label: spec.numeric || named ? spec.across : "Time", value: named ? (_u, i) => spec.x[i] ?? "–" : undefined },
        ...order.map((i) => ({
          label: spec.series[i].name,
          stroke: colors[i % colors.length],
          fill: spec.kind === "bars" ? colors[i % colors.length] : undefined,
          width: spec.kind === "bars" ? 0 : 2,
          dash: spec.series[i].dash ? [6, 4] : undefined,
          points: { fill: colors[i % colors.length], show: spec.kind === "points" || (spec.kind === "lines" && xs.length < 30), size: spec.kind === "points" ? 8 : 5 },
          paths: spec.kind === "points" ? () => null : paths,
          value: (_u, _shown, _series, at) => format(at == null ? null : values[i][at], spec.unit),
        })),
      ],
    };
    const plot = new uPlot(options, [xs, ...order.map((i) => shown[i])], place);
    new ResizeObserver(() => plot.setSize({ width: Math.max(260, place.clientWidth), height: HEIGHT })).observe(place);
    return plot;
  }

  const drawn = [...document.querySelectorAll("figure.plot")].map((figure) => ({ figure, plot: draw(figure) }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const each of drawn) {
      each.plot.destroy();
      each.plot = draw(each.figure);
    }
  });
})();
