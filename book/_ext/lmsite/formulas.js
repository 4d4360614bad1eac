/* Formulas to HTML, one JSON request and one JSON answer a line; started and fed by formulas.py.
   {"tex", "display"} gives {"html", "error"}; {"styles": true} gives the rules for all glyphs used so far. */
"use strict";

const [mathjax, fontURL] = process.argv.slice(2);

require(mathjax).init({
  loader: {load: ["input/tex", "output/chtml"]},
  chtml: {fontURL, adaptiveCSS: true, displayAlign: "center"},
  tex: {packages: {"[-]": ["noundefined"]}},  // an unknown macro is an error, not red letters
  startup: {typeset: false},
}).then(async MathJax => {
  const adaptor = MathJax.startup.adaptor;

  const answer = async ({tex, display, styles}) => {
    if (styles) return {css: adaptor.textContent(MathJax.chtmlStylesheet())};
    const container = await MathJax.tex2chtmlPromise(tex, {display});
    const mathml = await MathJax.tex2mmlPromise(tex, {display});
    adaptor.setAttribute(adaptor.firstChild(container), "aria-hidden", "true");
    const html = adaptor.outerHTML(container);
    const spoken = `<mjx-assistive-mml>${mathml.replace(/\s*\n\s*/g, "")}</mjx-assistive-mml>`;
    const error = /data-mjx-error="([^"]*)"/.exec(html);
    return {html: html.replace(/<\/mjx-container>$/, `${spoken}</mjx-container>`), error: error ? error[1] : ""};
  };

  for await (const line of require("readline").createInterface({input: process.stdin}))
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + "\n");
});
