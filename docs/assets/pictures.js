// Material draws `mermaid` blocks with window.mermaid, and takes it from the internet if there is none. This gives it
// one that comes from the site itself, and only on pages that have a picture: the library has 2.5 MB.
(() => {
  const library = new URL("mermaid.tiny.js", document.currentScript.src).href;
  // Packets make long messages, which push the lanes apart: they are broken into lines, and all else is kept small.
  const lines = (text, longest) => {
    const made = [""];
    for (const word of text.split(" ")) {
      const longer = `${made.at(-1)} ${word}`.trim();
      if (made.at(-1) && longer.length > longest) made.push(word);
      else made[made.length - 1] = longer;
    }
    return made.join("<br/>");
  };
  const narrow = (text) =>
    text
      .replace(/^(\s*\w+-+>>\w+: )(.*)$/gm, (all, head, message) =>
        head + message.replaceAll(" -> ", "<br/>-> ").replace(" [", "<br/>["))
      .replace(/^(\s*Note over \w+: )(.*)$/gm, (all, head, note) =>
        head + note.split("<br/>").map((line) => lines(line, 48)).join("<br/>"));
  const lanes = { actorMargin: 10, mirrorActors: false, boxMargin: 6, noteMargin: 6 };
  const letters = { actorFontSize: "14px", messageFontSize: "12px", noteFontSize: "12px" };
  const smallest = (text) => (text.startsWith("sequenceDiagram") ? 0.8 : 0.5); // of its natural size; what is wider scrolls
  let settings = {};
  let loading;

  const load = () => {
    loading ??= new Promise((resolve, reject) => {
      const standIn = window.mermaid;
      const script = document.createElement("script");
      script.src = library;
      script.onerror = () => reject(new Error(`${library} cannot be loaded`));
      script.onload = () => {
        const real = window.mermaid;
        window.mermaid = standIn;
        real.initialize(settings);
        resolve(real);
      };
      document.head.append(script);
    });
    return loading;
  };

  const readable = (svg, share) =>
    svg.replace(/max-width: ([\d.]+)px;/, (all, width) => `${all} min-width: ${Math.round(width * share)}px;`);

  window.mermaid = {
    initialize(given) {
      settings = { ...given, sequence: { ...given.sequence, ...lanes, ...letters } };
    },
    async render(id, text, ...rest) {
      const drawn = await (await load()).render(id, narrow(text), ...rest);
      return { ...drawn, svg: readable(drawn.svg, smallest(text)) };
    },
  };
})();
