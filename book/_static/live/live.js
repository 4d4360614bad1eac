/* What makes the pages live: widgets, plots and exercises. Values move between forms, plots and a worker that runs
   the book's own Python (worker.js); nothing is computed here. */
(() => {
  "use strict";
  const here = new URL(".", document.currentScript.src);
  const PLOTLY = new URL("../plotly.min.js", here);
  const AS_FILE = location.protocol === "file:";
  const SERVE = "This page was opened as a file, where browsers run no Python. Serve the book's folder " +
    "(`make serve`, or `python -m http.server` inside it) and the answer follows what you enter.";
  const CHECK_SECONDS = 10, START_SECONDS = 120;

  /* ---------------------------------------------------------------- helpers */

  const near = (element, go) => new IntersectionObserver((entries, observer) => {
    if (entries.some(entry => entry.isIntersecting)) { observer.disconnect(); go(); }
  }, {rootMargin: "300px"}).observe(element);

  const once = make => { let made; return () => made ??= make(); };

  const copy = async text => {
    try { return await navigator.clipboard.writeText(text); } catch { /* no permission, or not a secure context */ }
    const area = Object.assign(document.createElement("textarea"), {value: text});
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  const copyFrom = async (button, text) => {
    const label = button.textContent;
    await copy(text);
    button.textContent = "Copied";
    setTimeout(() => { if (button.textContent === "Copied") button.textContent = label; }, 1500);
  };

  /* A table or ledger as columns and rows of text, every number with all its digits. */
  const LEDGER = ["term", "formula", "numbers", "value", "unit", "source"];
  const textOf = place => place?.querySelector("data")?.value ?? place?.textContent ?? "";
  const tableOf = figure => {
    if (figure.matches(".lm-table")) return {
      columns: [...figure.querySelectorAll("thead th")].map(textOf),
      rows: [...figure.querySelectorAll("tbody tr")].map(row => [...row.cells].map(textOf))};
    const rows = [...figure.querySelectorAll(".lm-term")].map(term => {
      const part = name => term.querySelector(`[data-is=${name}]`)?.textContent ?? "", exact = term.querySelector("data");
      return [term.querySelector(".lm-name").textContent, part("formula"), part("numbers"), exact.value,
        exact.dataset.unit ?? "", part("source")];
    });
    return {columns: LEDGER, rows};
  };
  const WRITTEN = {
    Markdown: (columns, rows) => [columns, columns.map(() => "---"), ...rows]
      .map(line => `| ${line.map(cell => cell.replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |\n`).join(""),
    CSV: (columns, rows) => [columns, ...rows]
      .map(line => line.map(cell => /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell).join(",") + "\n").join(""),
    JSON: (columns, rows) =>
      JSON.stringify(rows.map(row => Object.fromEntries(row.map((cell, at) => [columns[at], cell]))), null, 1),
  };

  /* Bring `old` to the shape of `fresh` in place, so that focus, open terms and drawn plots survive an answer. */
  const morph = (old, fresh) => {
    for (const {name} of [...old.attributes])
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const {name, value} of fresh.attributes)
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    if (old.localName === "lm-plot") return old.draw(fresh.querySelector("script").textContent);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, index) => {
      const current = before[index];
      if (!current) old.append(node);
      else if (current.nodeName !== node.nodeName) current.replaceWith(node);
      else if (node.nodeType === Node.ELEMENT_NODE) morph(current, node);
      else if (current.data !== node.data) current.data = node.data;
    });
    before.slice(after.length).forEach(node => node.remove());
  };

  /* ----------------------------------------------------------- the worker */

  class Engine {
    #worker; #ready; #waiting = new Map(); #count = 0;

    start() {
      return this.#ready ??= new Promise((ok, no) => {
        const began = performance.now();
        this.#worker = new Worker(new URL("worker.js", here), {type: "module"});
        setTimeout(() => no(new Error(`nothing came within ${START_SECONDS} seconds`)), START_SECONDS * 1000);
        this.#worker.onerror = event => no(new Error(event.message || "the worker did not load"));
        this.#worker.onmessage = ({data}) => {
          if (data.ready) {
            document.documentElement.dataset.lmReadyMs = Math.round(performance.now() - began);
            ok();
          } else if (data.failed) no(new Error(data.failed));
          else this.#waiting.get(data.id)?.(data);
        };
      });
    }

    /* JSON text of the answer. `seconds` ends a question that does not come back, and the worker with it. */
    async ask(kind, name, text, seconds = 0) {
      await this.start();
      const id = ++this.#count;
      let timer;
      try {
        return await new Promise((ok, no) => {
          this.#waiting.set(id, ({started, error, result}) => {
            if (!started) return error === undefined ? ok(result) : no(new Error(error));
            if (seconds) timer = setTimeout(() => {
              this.#worker.terminate();
              this.#ready = undefined;
              no(new Error("time limit"));
            }, seconds * 1000);
          });
          this.#worker.postMessage({id, kind, name, text});
        });
      } finally {
        clearTimeout(timer);
        this.#waiting.delete(id);
      }
    }
  }
  const widgets = new Engine(), checks = new Engine();  // an endless loop in an exercise must not stop the widgets

  /* ------------------------------------------------------------------ plots */

  const script = src => once(() => new Promise((ok, no) => document.head.append(
    Object.assign(document.createElement("script"), {src, onload: ok, onerror: no}))));
  const plotly = script(PLOTLY), template = script(new URL("template.js", here));
  const drawn = new Set();
  const recolour = () => drawn.forEach(plot => plot.recolour());
  new MutationObserver(recolour).observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});

  /* Paper is white, and nobody scrolls it: what has not come into view is drawn for it. That is in time where
     plotly is there already; the print button waits for it (site.js). */
  let paper = false;
  addEventListener("beforeprint", () => {
    paper = true;
    if (globalThis.Plotly) document.querySelectorAll("lm-plot").forEach(plot => plot.show());
  });
  addEventListener("afterprint", () => { paper = false; recolour(); });

  const colours = () => {
    const dark = document.documentElement.dataset.theme === "dark" && !paper;
    return dark ? {ink: "#d5dbe1", grid: "#3d4754", card: "#1f2630"} : {ink: "#2b333b", grid: "#d9dee3", card: "#ffffff"};
  };

  /* Titles that do not fit are broken between words; plotly would cut them off at the plot's edge. */
  const broken = (title, room, size) => {
    const most = Math.floor(room / (size * .58)), lines = [];
    if (!title?.text || title.text.length <= most || title.text.includes("<")) return title;
    for (const word of title.text.split(" ")) {
      if (lines.length && lines.at(-1).length + 1 + word.length <= most) lines[lines.length - 1] += ` ${word}`;
      else lines.push(word);
    }
    return {...title, text: lines.join("<br>")};
  };
  const fitted = (layout, width, height, inside) => {
    const fit = {...layout, title: broken(layout.title, width, 16)};
    const more = (fit.title?.text?.split("<br>").length ?? 1) - 1;
    if (more) {
      fit.title.y = 1 - (14 + 5 * more) / height;
      fit.margin = {...layout.margin, t: (layout.margin?.t ?? 48) + 22 * more};
    }
    for (const [key, axis] of Object.entries(layout))
      if (/^[xy]axis\d*$/.test(key) && axis.title)
        fit[key] = {...axis, title: broken(axis.title, key[0] === "x" ? width - 80 : inside, 16.5)};
    return fit;
  };
  /* Names along the vertical axis get a third of the width at most. */
  const named = (data, width) => data.map(trace => typeof trace.y?.[0] !== "string" ? trace
    : {...trace, y: trace.y.map(name => broken({text: name}, width / 3, 13).text)});

  /* The layout with the theme's colours in it: written into every axis, because a template's axis colours lose
     to nothing that is already there. */
  const themed = layout => {
    const {ink, grid, card} = colours();
    const painted = {...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {...layout.font, color: ink}, hoverlabel: {...layout.hoverlabel, bgcolor: card, font: {color: ink}},
      ...(layout.title && {title: {...layout.title, font: {...layout.title.font, color: ink}}})};
    const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(key => /^[xy]axis\d*$/.test(key))]);
    for (const axis of axes)
      painted[axis] = {exponentformat: "SI", ...layout[axis], color: ink, gridcolor: grid, zerolinecolor: grid, linecolor: grid,
        automargin: true, ticklabeloverflow: "allow"};  // margins make room: no need to measure each label once more
    return painted;
  };

  customElements.define("lm-plot", class extends HTMLElement {
    #figure; #box; #visible = false;

    connectedCallback() {
      if (this.#box) return;
      this.#figure = JSON.parse(this.querySelector("script").textContent);
      this.#box = document.createElement("div");
      this.#box.style.minHeight = `${this.#figure.layout?.height ?? 380}px`;
      this.append(this.#box);
      near(this, () => { this.#visible = true; this.show(); });
    }

    disconnectedCallback() {
      drawn.delete(this);
      if (this.#box && globalThis.Plotly) Plotly.purge(this.#box);
    }

    draw(text) {
      this.querySelector("script").textContent = text;
      this.#figure = JSON.parse(text);
      return this.shown = this.#visible ? this.show() : undefined;
    }

    async show() {
      const {data, layout: {template: look, ...layout} = {}} = this.#figure;
      try { await Promise.all([plotly(), look === "book" && template()]); }
      catch { this.#box.textContent = this.getAttribute("aria-label"); return; }
      if (!this.isConnected) return;
      if (look) layout.template = look === "book" ? lmTemplate : look;
      const {height = 380} = layout, width = this.#box.clientWidth || 700;
      const put = (high, inside) => Plotly.react(this.#box, named(data, width),
        {...themed(fitted(layout, width, high, inside)), height: high}, {responsive: true, displaylogo: false});
      await put(height, height - 130);
      /* On a narrow page titles, names and legend take more rows: the plot grows rather than its inside shrinks. */
      const inside = this.#box._fullLayout._size.h, least = Math.min(220, height - 130);
      if (inside < least) await put(height + least - inside, least);
      drawn.add(this);
      this.dataset.drawn = "true";
    }

    recolour() { this.show(); }
  });

  /* ---------------------------------------------------------------- widgets */

  customElements.define("lm-widget", class extends HTMLElement {
    connectedCallback() {
      if (this.form) return;
      this.form = this.querySelector("form");
      this.spec = JSON.parse(this.form.querySelector(":scope > script").textContent);
      this.held = {...this.spec.defaults};
      this.status = this.querySelector(".lm-status");
      if (AS_FILE) { this.status.textContent = SERVE.replaceAll("`", ""); return; }
      this.form.addEventListener("submit", event => { event.preventDefault(); this.ask(); });
      this.form.addEventListener("input", event => this.edited(event.target));
      this.form.addEventListener("click", event => this.clicked(event.target));
      this.form.addEventListener("reset", () => setTimeout(() => {
        this.held = {...this.spec.defaults};
        this.follow();
        this.ask();
        this.remember();
      }));
      addEventListener("popstate", () => { if (this.restore()) this.ask(); });
      this.restore();
      this.classList.add("lm-live");
      near(this, () => this.wake());
    }

    async wake() {
      this.dataset.state = "loading";
      this.status.textContent = "Starting Python in the page; what is shown belongs to the values that the book was built with.";
      try {
        await widgets.start();
        this.complete(JSON.parse(await widgets.ask("prepare", this.dataset.name, this.id)));
      } catch (fault) { return this.fail(fault); }
      this.awake = true;
      this.since = undefined;  // the first answer is not charged with the start
      this.ask();
    }

    /* Fields that do not show at first are not in the page; until they are, `held` keeps their values. */
    complete(fields) {
      for (const [name, markup] of Object.entries(fields)) {
        this.querySelector(`[data-field="${name}"]`).innerHTML = markup;
        this.put(name, this.held[name]);
      }
      this.follow();
    }

    fail(fault) {
      this.dataset.state = "failed";
      this.status.textContent =
        `Python could not be started in this page (${fault.message}). The answer stays as the book was built.`;
    }

    field(name) { return this.form.elements[name]; }
    value(name) {
      const field = this.field(name);
      if (!field) return this.held[name];
      return field.type === "checkbox" ? String(field.checked) : field.value;
    }
    values() { return Object.fromEntries(Object.keys(this.spec.defaults).map(name => [name, this.value(name)])); }
    put(name, text) {
      const field = this.field(name);
      if (!field) this.held[name] = text;
      else if (field.type === "checkbox") field.checked = text === "true"; else field.value = text;
    }

    edited(target) {
      let name = target.name;
      if (target.type === "range") {
        name = target.closest("[data-field]").dataset.field;
        this.put(name, this.spec.stops[name][target.value]);
      }
      const filled = this.spec.presets[name]?.[this.value(name)] ?? {};
      for (const [other, text] of Object.entries(filled)) this.put(other, text);
      for (const [choice, presets] of Object.entries(this.spec.presets)) {
        if (choice === name || !(name in (presets[this.value(choice)] ?? {}))) continue;
        const free = [...this.field(choice).options].find(option => !(option.value in presets));
        if (free) this.put(choice, free.value);
      }
      this.follow(target);
      this.ask();
      this.remember();
    }

    /* Sliders stand at the stop nearest to what is typed. */
    follow(except) {
      for (const [name, stops] of Object.entries(this.spec.stops)) {
        const range = this.querySelector(`[data-field="${name}"] input[type=range]`);
        const typed = Number(this.value(name).replaceAll(/[,_]/g, ""));
        if (!range || range === except || Number.isNaN(typed)) continue;
        const distances = stops.map(stop => Math.abs(Number(stop) - typed));
        range.value = distances.indexOf(Math.min(...distances));
      }
      for (const range of this.querySelectorAll("input[type=range]")) {
        const name = range.closest("[data-field]").dataset.field;
        range.setAttribute("aria-valuetext", this.value(name));
      }
    }

    clicked(button) {
      if (button.dataset.step) {
        const range = button.parentElement.querySelector("input");
        range.value = Number(range.value) + Number(button.dataset.step);
        this.edited(range);
      } else if (button.dataset.copy) {
        const {columns, rows} = tableOf(button.closest("figure"));
        copyFrom(button, WRITTEN[button.dataset.copy](columns, rows));
      } else if ("copyLink" in button.dataset) {
        const link = new URL(location.href);
        link.search = this.query(new URLSearchParams());
        link.hash = this.id;
        copyFrom(button, link.href);
      }
    }

    /* One question at a time; what changed meanwhile is asked once, with the latest values. */
    async ask() {
      this.since ??= performance.now();
      if (!this.awake || this.busy) { this.again = this.busy; return; }
      this.busy = true;
      const since = this.since;
      this.since = undefined;
      try { await this.answer(JSON.parse(await widgets.ask("answer", this.dataset.name, JSON.stringify(this.values()))), since); }
      catch (fault) { this.fail(fault); }
      this.busy = false;
      if (this.again) { this.again = false; this.ask(); }
    }

    async answer(answer, since) {
      for (const place of this.querySelectorAll("[data-field]")) {
        const name = place.dataset.field;
        place.hidden = !answer.visible.includes(name);
        this.complain(place.querySelector(".lm-error"), answer.errors[name], this.field(name));
        const read = place.querySelector(".lm-read");
        if (read) read.textContent = answer.read[name] ?? "";
      }
      const elsewhere = Object.entries(answer.errors).filter(([name]) => !(name in this.spec.defaults));
      this.complain(this.querySelector(".lm-overall"), elsewhere.map(([, message]) => message).join(" "));
      const shown = this.querySelector(".lm-outputs");
      shown.classList.toggle("lm-stale", !answer.ok);
      if (answer.ok) {
        const fresh = shown.cloneNode(false);
        fresh.innerHTML = answer.html;
        morph(shown, fresh);
        this.querySelector(".lm-summary").textContent = answer.summary;
      }
      this.status.textContent = "";
      this.dataset.state = "live";
      this.dataset.ms = (performance.now() - since).toFixed(1);
      await Promise.all([...shown.querySelectorAll("lm-plot")].map(plot => plot.shown));
      this.dataset.msPlot = (performance.now() - since).toFixed(1);
      this.dataset.answers = Number(this.dataset.answers ?? 0) + 1;
    }

    complain(place, message, field) {
      place.hidden = !message;
      place.textContent = message ?? "";
      if (field) field.setAttribute("aria-invalid", String(Boolean(message)));
    }

    /* The address carries what differs from the defaults, under the widget's name; it replaces, so that Back leaves. */
    query(parameters) {
      for (const [name, standing] of Object.entries(this.spec.defaults)) {
        const key = `${this.dataset.name}.${name}`, text = this.value(name);
        parameters.delete(key);
        if (text !== standing) parameters.set(key, text);
      }
      return parameters.toString().replaceAll("%2F", "/");
    }

    remember() {
      clearTimeout(this.later);
      this.later = setTimeout(() => {
        const link = new URL(location.href);
        link.search = this.query(link.searchParams);
        if (link.href.length < 8000) history.replaceState(history.state, "", link);
      }, 300);
    }

    restore() {
      const parameters = new URLSearchParams(location.search), before = JSON.stringify(this.values());
      for (const [name, standing] of Object.entries(this.spec.defaults))
        this.put(name, parameters.get(`${this.dataset.name}.${name}`) ?? standing);
      this.follow();
      return JSON.stringify(this.values()) !== before;
    }
  });

  /* -------------------------------------------------------------- exercises */

  const INDENT = "    ";

  const insert = (area, text) => {  // execCommand keeps the browser's undo history; setRangeText does not
    if (!document.execCommand("insertText", false, text)) area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
  };

  customElements.define("lm-exercise", class extends HTMLElement {
    connectedCallback() {
      if (this.area) return;
      const {title, starter} = JSON.parse(this.querySelector(":scope > script").textContent);
      this.starter = starter;
      this.key = `lmlib.exercise.${this.dataset.name}`;
      const editor = document.createElement("div");
      editor.className = "lm-editor";
      editor.innerHTML = `
        <textarea spellcheck="false" autocapitalize="off" autocomplete="off" wrap="off"></textarea>
        <p class="lm-help">Tab indents; Escape, then Tab, leaves the editor; Ctrl+Enter runs the checks.</p>
        <div class="lm-tools"><button type="button" class="lm-primary">Run checks</button>
        <button type="button">Start over</button></div>
        <div class="lm-verdict" role="status" aria-live="polite"></div>`;
      this.area = editor.querySelector("textarea");
      this.area.setAttribute("aria-label", `Your code: ${title}`);
      this.verdict = editor.querySelector(".lm-verdict");
      const [run, again] = editor.querySelectorAll("button");
      this.run = run;
      const shown = this.querySelector(".lm-exercise-starter");
      if (AS_FILE) { this.say(SERVE.replaceAll("`", "")); shown.after(this.verdict); return; }
      shown.replaceWith(editor);
      this.area.value = localStorage.getItem(this.key) ?? starter;
      this.grow();
      this.classList.add("lm-live");
      this.area.addEventListener("focus", () => checks.start().catch(() => {}), {once: true});
      this.area.addEventListener("input", () => { this.grow(); this.keep(); });
      this.area.addEventListener("keydown", event => this.pressed(event));
      run.addEventListener("click", () => this.check());
      again.addEventListener("click", () => this.startOver());
    }

    grow() { this.area.rows = Math.max(6, this.area.value.split("\n").length + 1); }

    keep() {
      if (this.area.value === this.starter) localStorage.removeItem(this.key);
      else localStorage.setItem(this.key, this.area.value);
    }

    startOver() {
      this.area.focus();
      this.area.select();
      insert(this.area, this.starter);  // undo brings the reader's code back
      this.grow();
      this.keep();
      this.say("");
    }

    /* Tab indents; after Escape it moves on, so that the keyboard is not caught. */
    pressed(event) {
      const area = this.area, {selectionStart: start, value} = area;
      const line = value.slice(value.lastIndexOf("\n", start - 1) + 1, start);
      const leaving = this.leaving;
      this.leaving = event.key === "Escape" || (leaving && event.key === "Shift");
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.check();
      } else if (event.key === "Enter") {
        event.preventDefault();
        insert(area, "\n" + line.match(/^ */)[0] + (line.trimEnd().endsWith(":") ? INDENT : ""));
      } else if (event.key === "Tab" && !leaving) {
        event.preventDefault();
        if (!event.shiftKey) insert(area, INDENT);
        else if (line.startsWith(INDENT)) {
          const first = start - line.length;
          area.setSelectionRange(first, first + INDENT.length);
          insert(area, "");
          area.setSelectionRange(start - INDENT.length, start - INDENT.length);
        }
      }
    }

    say(text) { this.verdict.textContent = text; }

    async check() {
      if (this.run.disabled) return;
      this.run.disabled = true;
      this.verdict.setAttribute("aria-busy", "true");
      this.say("Starting Python in the page and running the checks…");
      try {
        const answer = JSON.parse(await checks.ask("check", this.dataset.name, this.area.value, CHECK_SECONDS));
        this.verdict.innerHTML = answer.html;
        this.dataset.passed = answer.passed;
      } catch (fault) {
        this.dataset.passed = false;
        this.say(fault.message === "time limit"
          ? `Stopped after ${CHECK_SECONDS} seconds: is there a loop that never ends?`
          : `The checks could not be run here (${fault.message}).`);
      }
      this.verdict.removeAttribute("aria-busy");
      this.run.disabled = false;
    }
  });
})();
