// Makes a built site lighter: drawings without what nobody sees, style sheets without what no page uses.
// Usage: node slim.mjs SITE
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PurgeCSS } from "purgecss";
import { optimize } from "svgo";

const site = process.argv[2];
const files = readdirSync(site, { recursive: true }).sort().map((name) => join(site, name));
const pages = files.filter((name) => name.endsWith(".html"));

let drawings = 0;
const draw = (svg) =>
  optimize(svg, {
    floatPrecision: 1,
    plugins: [
      { name: "preset-default", params: { overrides: { convertTransform: { floatPrecision: 3 }, removeDesc: false, removeUnknownsAndDefaults: { keepRoleAttr: true } } } },
      { name: "prefixIds", params: { prefix: `p${drawings++}`, prefixClassNames: false } },
    ],
  }).data;
for (const page of pages) {
  drawings = 0;
  const html = readFileSync(page, "utf8");
  writeFileSync(page, html.replace(/(<div class="canvas"[^>]*>)(<svg[\s\S]*?<\/svg>)/g, (_, open, svg) => open + draw(svg)));
}

const scripts = files.filter((name) => /\/(bundle|search)\.\w+\.min\.js$/.test(name));
const purged = await new PurgeCSS().purge({
  content: [...pages, ...scripts],
  css: files.filter((name) => name.endsWith(".min.css")),
  defaultExtractor: (text) => text.match(/[\w-]+/g) ?? [],
  // The scripts set these while the page is open.
  dynamicAttributes: ["data-md-color-scheme", "data-md-color-primary", "data-md-state", "dir", "open", "hidden", "checked"],
});
for (const { file, css } of purged) writeFileSync(file, css);
