// Material draws `mermaid` blocks with window.mermaid, and takes it from the internet if there is none. This gives it
// one that comes from the site itself, and only on pages that have a picture: the library has 2.5 MB.
(() => {
  const library = new URL("mermaid.tiny.js", document.currentScript.src).href;
  let settings = {};
  let loading;
  const load = () => {
    loading ??= new Promise((resolve, reject) => {
      const stand_in = window.mermaid;
      const script = document.createElement("script");
      script.src = library;
      script.onerror = () => reject(new Error(`${library} cannot be loaded`));
      script.onload = () => {
        const real = window.mermaid.default ?? window.mermaid;
        window.mermaid = stand_in;
        real.initialize(settings);
        resolve(real);
      };
      document.head.append(script);
    });
    return loading;
  };
  window.mermaid = {
    initialize(given) {
      settings = { ...given, flowchart: { useMaxWidth: true } };
    },
    async render(...what) {
      return (await load()).render(...what);
    },
  };
})();
