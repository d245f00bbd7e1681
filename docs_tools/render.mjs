// Reads a JSON list of {tex, display} and writes the list of their HTML, or of {error}.
import katex from "katex";

let text = "";
for await (const part of process.stdin) text += part;
const render = ({ tex, display }) => {
  try {
    const html = katex.renderToString(tex, { displayMode: display, throwOnError: true, strict: "error" });
    const light = html.replace(/<annotation[\s\S]*?<\/annotation>|<\/?semantics>/g, "");
    return display ? `<div class="formula" tabindex="0">${light}</div>` : light;
  } catch (error) {
    return { error: error.message };
  }
};
process.stdout.write(JSON.stringify(JSON.parse(text).map(render)));
