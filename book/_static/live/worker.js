/* Python in the page: one Pyodide, one question at a time. It holds no knowledge of the book but three entry
   points of lmlib: what a widget needs before its first answer, that answer, and the checks of an exercise. */
import {loadPyodide} from "../pyodide/pyodide.mjs";

const ready = (async () => {
  const bundle = fetch(new URL("lmlib.zip", import.meta.url), {cache: "no-cache"}).then(reply => {
    if (!reply.ok) throw new Error(`lmlib.zip: ${reply.status}`);
    return reply.arrayBuffer();
  });
  const python = await loadPyodide({indexURL: new URL("../pyodide/", import.meta.url).href});
  python.FS.writeFile("/lmlib.zip", new Uint8Array(await bundle));
  python.runPython("import sys; sys.path.insert(0, '/lmlib.zip')");
  const forms = python.pyimport("lmlib.book.forms");
  const {dumps} = python.pyimport("json");
  return {
    answer: forms.answer,
    prepare: forms.prepare,
    check: (name, source) => dumps(python.pyimport("lmlib.book.exercises.machinery").check_source(name, source)),
  };
})();

ready.then(() => postMessage({ready: true}), fault => postMessage({failed: String(fault.message ?? fault)}));

onmessage = async ({data: {id, kind, name, text}}) => {
  try {
    const entry = (await ready)[kind];
    postMessage({id, started: true});
    postMessage({id, result: entry(name, text)});
  } catch (fault) {
    postMessage({id, error: String(fault.message ?? fault)});
  }
};
