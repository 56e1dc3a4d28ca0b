// What a report does in the browser: draws the charts of what is opened, filters, opens what a link points at, copies.
(() => {
  "use strict";
  // What is not finite was written as null, and is not drawn.
  const data = JSON.parse(document.getElementById("data").textContent, (_, value) => value === null ? NaN : value);
  const colours = ["var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--five)", "var(--six)"];
  const scales = {
    "s": [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]],
    "B": [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
    "B/s": [[1e9, "GB/s"], [1e6, "MB/s"], [1e3, "kB/s"], [1, "B/s"]],
    "bit/s": [[1e9, "Gbit/s"], [1e6, "Mbit/s"], [1e3, "kbit/s"], [1, "bit/s"]],
  };

  // The unit with the prefix in which the largest of these values reads best, and by what to divide.
  const scaled = (unit, values) => {
    const most = d3.max(values, Math.abs) || 1;
    return (scales[unit] || [[1, unit]]).find(([scale]) => most >= scale) || (scales[unit] || [[1, unit]]).at(-1);
  };

  const legend = names => {
    const list = document.createElement("div");
    list.className = "legend";
    names.forEach((name, number) => {
      const item = document.createElement("span"), dot = document.createElement("i");
      dot.style.background = colours[number % colours.length];
      item.append(dot, name);
      list.append(item);
    });
    return list;
  };

  const base = (figure, label, more) => ({
    width: Math.max(240, Math.min(figure.clientWidth || 420, 1100)), marginLeft: 52, marginBottom: 34,
    style: {background: "transparent", fontSize: "12px"}, className: "plot", ariaLabel: label, ...more,
  });

  // On a logarithmic axis 1, 2 and 5 of each decade have their number, without a prefix of its own.
  const decades = value => /^[125]e/.test(value.toExponential()) ? d3.format(",~r")(+value.toPrecision(3)) : "";

  const colour = names => ({domain: names, range: names.map((_, number) => colours[number % colours.length])});

  // Every sample a point, spread so that none hides another; the median a line. Below it the cumulative distribution.
  const points = (figure, chart) => {
    const names = Object.keys(chart.groups);
    const [scale, unit] = scaled(chart.unit, names.flatMap(name => chart.groups[name]));
    const samples = names.flatMap(name => chart.groups[name].map(value => ({name, value: value / scale})));
    const x = {label: unit || "value", grid: true, nice: true, type: chart.logarithmic ? "log" : "linear",
      tickFormat: chart.logarithmic ? decades : undefined};
    const step = names.flatMap(name => {
      const ordered = d3.sort(chart.groups[name].map(value => value / scale));
      return ordered.map((value, rank) => ({name, value, share: (rank + 1) / ordered.length}));
    });
    // Few samples lie side by side. Where they would not have room in their row, all are spread over its height by their
    // rank, as evenly as the golden ratio does.
    const row = Math.min(90, Math.max(44, 260 / names.length));
    const along = chart.logarithmic ? Math.log : value => value;
    const [least, most] = d3.extent(samples, sample => along(sample.value));
    const wide = 6.5 * (most - least || 1) / (figure.clientWidth || 420);  // a dot
    const densest = d3.max(d3.rollups(samples, dots => dots.length,
      sample => `${sample.name} ${Math.floor(along(sample.value) / wide)}`), ([, count]) => count);
    const many = samples.length > 100 * names.length || densest * 6.5 > row;
    samples.forEach((sample, rank) => { sample.place = (rank * .618034) % 1; });
    const facet = names.length > 1 ? "name" : undefined;
    const dots = {fill: "name", fillOpacity: many ? .4 : .65, r: many ? 2 : 3, fy: facet, x: "value", tip: true,
      title: d => `${d.name}: ${d3.format(".4~g")(d.value)} ${unit}`};
    const left = Math.min(120, Math.max(52, 8 + 7 * d3.max(names, name => name.length)));
    return [
      names.length > 1 ? legend(names) : null,
      Plot.plot(base(figure, `${chart.title}: every sample`, {
        height: 40 + row * names.length, x, y: {axis: null, domain: many ? [-.2, 1.2] : undefined}, fy: {label: null, domain: names, axis: names.length > 1 ? "right" : null}, color: colour(names),
        marginLeft: 12, marginRight: names.length > 1 ? left : 16,
        marks: [
          Plot.dot(samples, many ? {...dots, y: "place"} : Plot.dodgeY("middle", dots)),
          Plot.tickX(names.filter(name => name in (chart.marked || {})).map(name =>
            ({name, value: chart.marked[name] / scale})), {x: "value", fy: facet, strokeDasharray: "4 3"}),
          Plot.tickX(samples, Plot.groupZ({x: "median"}, {
            x: "value", z: "name", fy: facet, stroke: "name", strokeWidth: 2.5,
          })),
        ],
      })),
      samples.length < 3 ? null : Plot.plot(base(figure, `${chart.title}: cumulative distribution`, {
        height: 190, x, y: {label: "share of samples", domain: [0, 1], grid: true, ticks: 5, tickFormat: "%"},
        color: colour(names),
        marks: [Plot.ruleY([0]), Plot.line(step, {x: "value", y: "share", stroke: "name", curve: "step-after",
          strokeWidth: 1.8, tip: true})],
      })),
    ];
  };

  // Base and head, run by run, joined where they are pairs; below them the differences of the pairs.
  const pairs = (figure, chart) => {
    const [scale, unit] = scaled(chart.unit, [...chart.base, ...chart.head]);
    const runs = ["base", "head"].flatMap(name => chart[name].map((value, run) =>
      ({name, run: run + 1, value: value / scale})));
    const drawn = [
      Plot.plot(base(figure, `${chart.title}: base and head, run by run`, {
        height: 200, x: {label: chart.paired ? "pair" : "run", tickFormat: "d", interval: 1, type: "linear"},
        y: {label: unit || "value", grid: true, nice: true}, color: colour(["base", "head"]),
        marks: [
          chart.paired ? Plot.ruleX(d3.groups(runs, d => d.run).map(([run, two]) => ({run, low: d3.min(two, d => d.value),
            high: d3.max(two, d => d.value)})), {x: "run", y1: "low", y2: "high", strokeOpacity: .35}) : null,
          Plot.dot(runs, {x: "run", y: "value", fill: "name", r: 3.5, fillOpacity: .8, tip: true}),
        ],
      })),
    ];
    if (chart.paired && chart.base.length) {
      const differences = chart.base.map((value, pair) => ({
        pair: pair + 1, value: chart.ratio ? chart.head[pair] / value - 1 : (chart.head[pair] - value) / scale,
      }));
      drawn.push(Plot.plot(base(figure, `${chart.title}: head against base, pair by pair`, {
        height: 170, x: {label: "pair", tickFormat: "d", interval: 1, type: "linear"},
        y: {label: chart.ratio ? "head / base − 1" : `head − base (${unit})`, grid: true, nice: true,
          tickFormat: chart.ratio ? "+.0%" : undefined},
        marks: [
          Plot.ruleY([0]), Plot.ruleX(differences, {x: "pair", y: "value", strokeOpacity: .35}),
          Plot.dot(differences, {x: "pair", y: "value", fill: "var(--one)", r: 3.5, tip: true}),
          Plot.ruleY([d3.median(differences, d => d.value)], {stroke: "var(--two)", strokeDasharray: "4 3"}),
        ],
      })));
    }
    return [legend(["base", "head"]), ...drawn];
  };

  // One axis of time; a panel for each unit.
  const time = (figure, chart) => {
    const names = chart.lines.map(line => line.name);
    const end = d3.max(chart.lines, line => d3.max(line.times_s)) || 1;
    figure.classList.add("across");
    const drawn = d3.groups(chart.lines, line => line.unit).map(([unit, lines]) => {
      const [scale, shown] = scaled(unit, lines.flatMap(line => line.values));
      const rows = lines.flatMap(line => line.values.map((value, at) =>
        ({name: line.name, time: line.times_s[at], value: value / scale})));
      return Plot.plot(base(figure, `${chart.title}: ${unit} over time`, {
        height: 160, x: {label: "seconds", domain: [0, end]}, y: {label: shown, grid: true, zero: true, nice: true},
        color: colour(names),
        marks: [Plot.line(rows, {x: "time", y: "value", stroke: "name", curve: "step-after", strokeWidth: 1.5, tip: true})],
      }));
    });
    return [legend(names), ...drawn];
  };

  // Lines over two axes; what is dashed was not measured.
  const curves = (figure, chart) => {
    const names = Object.keys(chart.curves);
    const rows = names.flatMap(name => chart.curves[name].map(([x, y]) => ({name, x, y})));
    const measured = rows.filter(row => !chart.dashed.includes(row.name));
    figure.classList.add("across");
    return [names.length > 1 ? legend(names) : null, Plot.plot(base(figure, chart.title, {
      height: 320, marginLeft: 64, color: colour(names),
      x: {label: chart.x, type: chart.logarithmic_x ? "log" : "linear", nice: true, grid: true,
        tickFormat: chart.logarithmic_x ? decades : undefined},
      y: {label: chart.y, type: chart.logarithmic_y ? "log" : "linear", nice: true, grid: true, zero: !chart.logarithmic_y,
        tickFormat: chart.logarithmic_y ? decades : undefined},
      marks: [
        Plot.line(measured, {x: "x", y: "y", stroke: "name", strokeWidth: 1.8, tip: true}),
        Plot.line(rows.filter(row => chart.dashed.includes(row.name)),
          {x: "x", y: "y", stroke: "name", strokeWidth: 1.8, strokeDasharray: "6 5", tip: true}),
        measured.length <= 300 ? Plot.dot(measured, {x: "x", y: "y", fill: "name", r: 3}) : null,
      ],
    }))];
  };

  // Bars with their values at their ends; the names stand above them, in full.
  const bars = (figure, chart) => {
    const series = Object.keys(chart.series);
    const rows = series.flatMap(name => Object.entries(chart.series[name]).map(([key, value]) => ({name, key, value})));
    const least = d3.min(rows.filter(row => row.value > 0), row => row.value) || 1;
    const begin = chart.logarithmic ? 10 ** Math.floor(Math.log10(least)) : 0;
    figure.classList.add("across");
    return [series.length > 1 ? legend(series) : null, Plot.plot(base(figure, chart.title, {
      height: 74 + chart.names.length * (26 + 18 * series.length), marginLeft: 12, marginTop: 34, marginRight: 70, color: colour(series),
      x: {label: chart.y, grid: true, type: chart.logarithmic ? "log" : "linear", nice: true,
        tickFormat: chart.logarithmic ? decades : undefined},
      y: {axis: null, domain: series}, fy: {axis: null, domain: chart.names, padding: .45},
      marks: [
        Plot.rectX(rows, {x1: begin, x2: row => Math.max(row.value, begin), y: "name", fy: "key", fill: "name",
          title: row => `${row.key}: ${row.value}`}),
        Plot.text(rows, {x: row => Math.max(row.value, begin), y: "name", fy: "key", dx: 5, textAnchor: "start",
          text: row => d3.format(",.3~r")(row.value)}),
        Plot.text(chart.names, {fy: name => name, text: name => name, frameAnchor: "top-left", dy: -14, lineWidth: 60}),
      ],
    }))];
  };

  // What lies in what: the innermost alone at the top, and below it a row for each that is put around it. A box is as
  // wide as its share of the bytes, but for the smallest, whose names need room.
  const nested = (figure, chart) => {
    const options = base(figure, chart.title, {marginLeft: 1, marginRight: 1, marginTop: 4, marginBottom: 4});
    const names = chart.layers.map(layer => layer.name);
    const room = options.width - 2, least = Math.min(76, room / names.length);
    const sizes = chart.layers.map(layer => layer.size_bytes), total = d3.sum(sizes) || 1;
    const small = sizes.map(size => size * room < least * total);
    const rest = d3.sum(sizes, (size, number) => small[number] ? 0 : size) || 1;
    const left = room - least * d3.sum(small);
    const ends = [0, ...d3.cumsum(sizes, (size, number) => small[number] ? least : size * left / rest)];
    const rows = names.map((_, number) => names.length - 1 - number);  // each the outermost layer of its row
    const place = outermost => rows.indexOf(outermost) * 62 + 20;
    const boxes = rows.flatMap(outermost => chart.layers.slice(outermost).map((layer, number) => ({
      ...layer, x1: ends[outermost + number] + 1, x2: ends[outermost + number + 1] - 1, y: place(outermost),
    })));
    const middle = box => (box.x1 + box.x2) / 2;
    figure.classList.add("across");
    return [Plot.plot({...options, height: names.length * 62 + 30,
      x: {axis: null, domain: [0, room]}, y: {axis: null, domain: [0, names.length * 62 + 22], reverse: true},
      color: colour(names),
      marks: [
        Plot.text(rows, {x: 1, y: outermost => place(outermost) - 10, text: outermost => chart.layers[outermost].above,
          textAnchor: "start"}),
        Plot.rect(boxes, {x1: "x1", x2: "x2", y1: "y", y2: box => box.y + 36, fill: "name", rx: 4,
          title: box => `${box.name}: ${box.text}`}),
        Plot.text(boxes, {x: middle, y: box => box.y + 12, text: "name", fill: "var(--paper)", fontWeight: 600}),
        Plot.text(boxes, {x: middle, y: box => box.y + 26, text: box => `${d3.format(",")(box.size_bytes)} B`,
          fill: "var(--paper)"}),
        Plot.text([chart.below], {x: 1, y: names.length * 62 + 14, text: text => text, textAnchor: "start"}),
      ],
    })];
  };

  const drawers = {points, pairs, time, curves, bars, nested};
  const draw = figure => {
    if (figure.dataset.drawn) return;
    figure.dataset.drawn = "yes";
    const chart = data[+figure.dataset.chart];
    const parts = drawers[chart.kind](figure, chart).filter(Boolean);
    for (const part of parts) part.querySelector?.("style")?.remove();  // report.css has it: each would style all anew
    figure.append(...parts);
    for (const drawn of figure.querySelectorAll("svg")) drawn.setAttribute("role", "img");
  };
  const drawAll = within => within.querySelectorAll(".chart").forEach(draw);

  for (const figure of document.querySelectorAll(".chart")) if (!figure.closest("details.cell")) draw(figure);
  for (const cell of document.querySelectorAll("details.cell")) {
    if (cell.open) drawAll(cell);
    cell.addEventListener("toggle", () => cell.open && drawAll(cell));
  }

  const reveal = () => {
    const cell = location.hash.startsWith("#cell-") && document.getElementById(location.hash.slice(1));
    if (!cell) return;
    cell.hidden = false;
    cell.open = true;
    cell.scrollIntoView();
    cell.querySelector("summary").focus({preventScroll: true});
  };
  addEventListener("hashchange", reveal);
  document.querySelectorAll('a[href^="#cell-"]').forEach(link => link.addEventListener("click", () => {
    if (location.hash === link.getAttribute("href")) reveal();
  }));
  reveal();

  const form = document.querySelector(".filter");
  if (form) {
    const cells = [...document.querySelectorAll("details.cell")];
    const filter = () => {
      const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
      // A word without a box of its own stays: not every page has boxes.
      const leftOut = new Set([...form.querySelectorAll('[name="word"]:not(:checked)')].map(box => box.value));
      for (const cell of cells) {
        const name = cell.querySelector("summary").textContent.toLowerCase();
        cell.hidden = leftOut.has(cell.dataset.word) || !words.every(word => name.includes(word));
      }
      document.getElementById("shown").textContent = `${cells.filter(cell => !cell.hidden).length} of ${cells.length}`;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", event => event.preventDefault());
    filter();
  }

  document.querySelectorAll(".copy").forEach(button => button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {  // a page from a file may not; the text is marked, to be copied by hand
      getSelection().selectAllChildren(text);
      button.textContent = "Marked";
    }
  }));
  document.documentElement.dataset.ready = "yes";
})();
