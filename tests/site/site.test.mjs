// The built site as a reader's browser sees it: SITE=site node --test tests/site
// Every page is visited before anything fails; each failure names its pages.
import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join, relative, resolve, sep } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const ROOT = resolve(HERE, "../..");
const SITE = resolve(process.env.SITE ?? join(ROOT, "site"));
const MOST = 500_000; // bytes of a page's first load, text compressed as web servers send it
const WIDE = { width: 1440, height: 900 };
const PHONE = { width: 390, height: 844 };
const AT_ONCE = 3;
const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".jpg": "image/jpeg",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".txt": "text/plain; charset=utf-8",
  ".woff2": "font/woff2",
  ".xml": "application/xml",
};

// What was found wrong: check -> reason -> pages.
const faults = {};
const fault = (check, page, reason, detail) => {
  const pages = ((faults[check] ??= new Map()).get(reason) ?? faults[check].set(reason, new Set()).get(reason));
  pages.add((page || "home") + (detail ? ` (${detail})` : ""));
};
const expectNone = (check) => {
  const found = [...(faults[check] ?? [])].map(([reason, pages]) => `${reason}\n      on ${[...pages].join(", ")}`);
  assert.ok(!found.length, `\n  ${found.join("\n  ")}`);
};

test("the site", async (t) => {
  const { chromium, axe } = tools();
  const { files, pages, base } = readSite();
  const browser = await chromium.launch({
    executablePath: findChromium(),
    // Nothing outside can be reached, whether or not there is a network: a page that asks for more, fails.
    args: ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
  });
  t.after(() => browser.close());

  const weights = [];
  const anchors = new Map();
  const links = [];
  const folded = [];
  let plots = 0;

  // A browser context and a server for each visit, so that what is sent for it can be counted, and nothing is cached.
  const visit = async (page, scheme, look) => {
    const server = await serve(files, base);
    const context = await browser.newContext({ colorScheme: scheme, reducedMotion: "reduce", viewport: WIDE });
    try {
      const tab = await context.newPage();
      const url = server.origin + base + (page === "404.html" ? "no/such/page/" : page);
      listen(tab, server.origin, url, (reason) => fault("load", page, reason));
      await tab.goto(url, { waitUntil: "networkidle" });
      // On a busy machine the network may be idle before the page is laid out, which is what asks for fonts.
      await tab.evaluate(laidOut);
      const sent = server.sent();
      const wanted = scheme === "dark" ? "slate" : "default";
      const painted = await tab.evaluate(() => document.body.dataset.mdColorScheme);
      if (painted !== wanted) fault("axe", page, `the ${scheme} scheme was asked for, ${painted} came`);
      await tab.evaluate(unfold);
      await look(tab, sent, server);
    } catch (error) {
      fault("load", page, `visit in ${scheme}: ${error.message.split("\n")[0]}`);
    } finally {
      await context.close();
      server.close();
    }
  };

  const visits = pages.flatMap((page) => [
    () =>
      visit(page, "light", async (tab, sent, server) => {
        const [packed, onDisk] = sent;
        weights.push([packed, onDisk, page]);
        if (packed > MOST) fault("weight", page, `more than ${MOST} bytes`, `${packed}`);
        for (const [reason, detail] of await tab.evaluate(emptyPlots)) fault("plots", page, reason, detail);
        const found = await tab.evaluate(linksAndAnchors);
        anchors.set(page, new Set(found.ids));
        for (const link of found.links) links.push([page, link.replace(server.origin, "")]);
        for (const url of found.sources)
          if (!url.startsWith(server.origin)) fault("load", page, `asks for ${url}`);
        if (found.folded) folded.push(page);
        plots += found.plots;
        for (const [reason, detail] of await audit(tab, axe)) fault("axe", page, `light: ${reason}`, detail);
        await tab.setViewportSize(PHONE);
        for (const reason of await tab.evaluate(overflow, PHONE.width)) fault("overflow", page, reason);
        // What scrolls sideways on a phone is other in each page; what else a phone shows is the same in all.
        const rules = page === "" ? undefined : ["scrollable-region-focusable"];
        for (const [reason, detail] of await audit(tab, axe, rules)) fault("axe", page, `phone: ${reason}`, detail);
      }),
    () =>
      visit(page, "dark", async (tab) => {
        for (const [reason, detail] of await audit(tab, axe)) fault("axe", page, `dark: ${reason}`, detail);
      }),
  ]);
  const worker = async () => {
    while (visits.length) await visits.shift()();
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));

  for (const [page, link] of [...links, ...searched(files)]) {
    const url = new URL(link, "http://localhost");
    const path = decodeURIComponent(url.pathname);
    const inside = path.startsWith(base) ? path.slice(base.length) : undefined;
    const target = inside?.replace(/(^|\/)index\.html$/, "$1");
    const anchor = decodeURIComponent(url.hash.slice(1));
    // The page that says that there is no such page is seen at an address that there is not.
    const own = page === "404.html" && target === "no/such/page/" ? page : target;
    if (own === undefined || (!anchors.has(own) && !files.has(inside))) fault("links", page, `${link}: no such page`);
    else if (anchor && !anchors.get(own)?.has(anchor)) fault("links", page, `${link}: no such anchor`);
  }

  weights.sort((a, b) => b[0] - a[0]);
  for (const [packed, onDisk, page] of weights.slice(0, 5)) {
    t.diagnostic(`${packed} bytes (${onDisk} unpacked): ${page || "home"}`);
  }
  t.diagnostic(`${pages.length} pages, ${plots} plots, ${folded.length} pages with folded code`);
  const check = (name, key) => t.test(name, () => expectNone(key));
  await check("every page loads with no message, no failed request and none to another host", "load");
  await check(`no page is wider than ${PHONE.width} px`, "overflow");
  await check("axe finds no violation, in light and dark", "axe");
  await check(`no page's first load is more than ${MOST} bytes`, "weight");
  await check("every plot has a title, a description and marks", "plots");
  await check("every link and anchor resolves", "links");

  // The clipboard is one for all pages, so these take turns.
  await t.test("copy buttons of folded blocks copy them", async () => {
    const server = await serve(files, base);
    const context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"], viewport: WIDE });
    const tab = await context.newPage();
    for (const page of folded) {
      await tab.goto(server.origin + base + page);
      try {
        await copyFolded(tab, (reason) => fault("copy", page, reason));
      } catch (error) {
        fault("copy", page, error.message.split("\n")[0]);
      }
    }
    await context.close();
    server.close();
    expectNone("copy");
  });

  await t.test("the search finds the page for what users type", async () => {
    const phrases = JSON.parse(readFileSync(join(HERE, "phrases.json"), "utf-8"));
    const server = await serve(files, base);
    const tab = await browser.newPage({ viewport: WIDE });
    await tab.goto(server.origin + base);
    for (const phrase of phrases) {
      const first = await search(tab, phrase, server.origin + base);
      if (first) fault("search", phrase.page, `"${phrase.typed}" finds first ${first}`, phrase.anchor);
    }
    await tab.close();
    server.close();
    expectNone("search");
  });
});

function tools() {
  const require = createRequire(join(ROOT, "docs_tools", "package.json"));
  try {
    const { chromium } = require("playwright-core");
    return { chromium, axe: readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8") };
  } catch (error) {
    assert.fail(`the tests' tools are missing; run: npm ci --prefix docs_tools (${error.message.split("\n")[0]})`);
  }
}

function findChromium() {
  const usual = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const tried = process.env.CHROMIUM ? [process.env.CHROMIUM] : usual;
  const found = tried.find((path) => existsSync(path));
  assert.ok(found, `no browser at ${tried.join(", ")}: install one (Debian: apt install chromium) or set CHROMIUM`);
  return found;
}

// Return the site's files by path, its pages by address, and the path under which it is to be published.
function readSite() {
  assert.ok(existsSync(join(SITE, "index.html")), `there is no site in ${SITE}: run \`make docs\`, or set SITE`);
  const files = new Map();
  for (const name of readdirSync(SITE, { recursive: true })) {
    const path = join(SITE, name);
    if (statSync(path).isFile()) files.set(relative(SITE, path).split(sep).join("/"), path);
  }
  const pages = [...files.keys()].filter((name) => name.endsWith(".html"));
  const home = readFileSync(files.get("index.html"), "utf-8");
  const canonical = home.match(/<link rel="canonical" href="([^"]+)"/)?.[1];
  return {
    files,
    pages: pages.map((name) => name.replace(/(^|\/)index\.html$/, "$1")).sort(),
    base: canonical ? new URL(canonical).pathname : "/",
  };
}

async function serve(files, base) {
  let sent = 0;
  let onDisk = 0;
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const name = path.startsWith(base) ? path.slice(base.length).replace(/(^|\/)$/, "$1index.html") : "";
    const found = files.has(name) ? name : "404.html";
    const body = files.has(found) ? readFileSync(files.get(found)) : Buffer.from("not found");
    const type = TYPES[extname(found)] ?? "application/octet-stream";
    const isText = /^text|javascript|json|xml/.test(type);
    const packed = isText ? gzipSync(body, { level: 6 }) : body;
    sent += packed.length;
    onDisk += body.length;
    const encoding = isText ? { "Content-Encoding": "gzip" } : {};
    response.writeHead(found === name ? 200 : 404, { "Content-Type": type, "Content-Length": packed.length, ...encoding });
    response.end(packed);
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { origin: `http://127.0.0.1:${server.address().port}`, sent: () => [sent, onDisk], close };
}

// Report what the browser complains of. A page that is not there is not there: its own 404 is none.
function listen(tab, origin, url, report) {
  const place = (address) => address.replace(origin, "");
  tab.on("console", (message) => {
    const of404 = message.location().url === url && message.text().includes("404");
    if (["error", "warning"].includes(message.type()) && !of404)
      report(`${message.type()} in the console: ${place(message.text())} ${place(message.location().url)}`);
  });
  tab.on("pageerror", (error) => report(`exception: ${error.message}`));
  tab.on("request", (request) => {
    if (!request.url().startsWith(origin) && !/^(data|blob):/.test(request.url())) report(`asks for ${request.url()}`);
  });
  tab.on("websocket", (socket) => report(`asks for ${socket.url()}`));
  tab.on("requestfailed", (request) => {
    const why = request.failure()?.errorText;
    if (request.url().startsWith(origin)) report(`no answer for ${place(request.url())}: ${why}`);
  });
  tab.on("response", (response) => {
    if (response.status() >= 400 && response.url() !== url) report(`${response.status()} for ${place(response.url())}`);
  });
}

// A formula's boxes are hidden from assistive technology, and are most of a page's elements: its MathML is what counts.
// Of a table's header that is a formula, axe says that it is empty.
async function audit(tab, axe, rules, again = true) {
  if (!(await tab.evaluate(() => "axe" in window))) await tab.evaluate(`${axe};0`);
  const violations = await tab.evaluate(async (runOnly) => {
    const options = { resultTypes: ["violations"], ...(runOnly && { runOnly }) };
    return (await axe.run({ exclude: [".katex-html", "th:has(math)"] }, options)).violations;
  }, rules);
  // What the theme's scripts do after a change of size may be late on a busy machine.
  if (violations.length && again) {
    await tab.waitForTimeout(500);
    return audit(tab, axe, rules, false);
  }
  const found = new Map();
  for (const { id, nodes } of violations)
    for (const { target, failureSummary } of nodes) {
      const reason = `${id}: ${failureSummary.split("\n").slice(1).join(";").replace(/\s+/g, " ").trim()}`;
      found.set(reason, [...(found.get(reason) ?? []), target.join(" ")]);
    }
  const some = ([first, ...more]) => first + (more.length ? ` and ${more.length} more` : "");
  return [...found].map(([reason, targets]) => [reason, some(targets)]);
}

// Search results lead to pages as links do.
function searched(files) {
  const index = files.get("search/search_index.json");
  if (!index) return [];
  const { base } = readSite();
  return JSON.parse(readFileSync(index, "utf-8")).docs.map(({ location }) => ["the search index", base + location]);
}

// Return what the search finds first, unless what is wanted is among the first three.
async function search(tab, { typed, page, anchor }, home) {
  const box = tab.locator("input[data-md-component=search-query]");
  await box.click();
  await box.fill("");
  await box.pressSequentially(typed);
  // Of each page, its own link and those of its sections that are not folded.
  const read = () =>
    tab.$$eval(".md-search-result__item", (items) =>
      items.slice(0, 3).map((item) =>
        [...item.querySelectorAll("a:not(.md-search-result__more a)")].map((link) =>
          link.href.replace(/\?h=[^#]*/, ""),
        ),
      ),
    );
  const isWanted = (link) => (anchor ? link === `${home}${page}#${anchor}` : link.split("#")[0] === home + page);
  // Each letter is answered in turn by a worker: the last answer is the one after which no other comes.
  let found = [];
  for (let quiet = 0, tries = 0; tries < 150; tries++) {
    await tab.waitForTimeout(100);
    const now = await read();
    quiet = JSON.stringify(now) === JSON.stringify(found) ? quiet + 1 : 0;
    found = now;
    if (quiet >= 4 && found.flat().some(isWanted)) return undefined;
  }
  return found.map(([link]) => link?.replace(home, "") || "home").join(", ") || "nothing";
}

async function copyFolded(tab, report) {
  for (const block of await tab.locator("details pre:has(> code)").all()) {
    for (const folds of await block.locator("xpath=ancestor::details").all())
      if (!(await folds.evaluate((details) => details.open))) await folds.locator("> summary").click();
    const text = (await block.locator("> code").innerText()).trim();
    const name = text.split("\n")[0];
    const button = block.locator("[data-md-type=copy]");
    if (!(await button.count())) {
      report(`no button to copy "${name}"`);
      continue;
    }
    await tab.evaluate(() => navigator.clipboard.writeText("nothing"));
    await button.click({ timeout: 2000 });
    const copied = await tab.evaluate(() => navigator.clipboard.readText());
    if (copied.trim() !== text) report(`"${name}" is not what is copied: ${copied.split("\n")[0]}`);
  }
}

// The functions below run in the page.

async function laidOut() {
  document.body.getBoundingClientRect();
  await new Promise(requestAnimationFrame);
  await document.fonts.ready;
}

function unfold() {
  const style = document.createElement("style");
  style.textContent = `*, ::before, ::after { transition: none !important; animation: none !important; }
    .tabbed-block { display: block !important; }`;
  document.head.append(style);
  for (const details of document.querySelectorAll("details")) details.open = true;
}

function overflow(width) {
  if (document.documentElement.scrollWidth <= width) return [];
  const scrolls = (element) =>
    element !== document.body && (getComputedStyle(element).overflowX !== "visible" || scrolls(element.parentElement));
  const wide = [...document.body.querySelectorAll("*")].filter(
    (element) => element.getBoundingClientRect().right > width + 0.5 && !scrolls(element.parentElement),
  );
  const inner = wide.filter((element) => !wide.some((other) => other !== element && element.contains(other)));
  const name = ({ localName, id, className, clientWidth }) =>
    `<${localName}${id && ` id="${id}"`}${className && ` class="${className}"`}> of ${clientWidth} px`;
  return [`${document.documentElement.scrollWidth} px wide, by ${inner.slice(0, 3).map(name).join(", ")}`];
}

function linksAndAnchors() {
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const here = (address) => new URL(address, document.baseURI).href;
  const hrefs = [...document.querySelectorAll("a[href], area[href], use")].map((element) =>
    element.getAttribute(element.hasAttribute("href") ? "href" : "xlink:href"),
  );
  const sources = [...document.querySelectorAll("img, script, iframe, source, video, audio, embed, track")].flatMap(
    (element) => [element.getAttribute("src"), ...(element.getAttribute("srcset") ?? "").split(",")],
  );
  const heads = [...document.querySelectorAll("link:not([rel=canonical])[href]")];
  const sheets = heads.map((link) => link.getAttribute("href"));
  const asked = [...sources, ...sheets].filter(Boolean).map((source) => here(source.trim().split(" ")[0]));
  return {
    ids: [...ids, ...[...document.querySelectorAll("a[name]")].map((element) => element.name)],
    links: [...hrefs.filter((href) => href !== null).map(here), ...asked].filter((url) =>
      url.startsWith(`${location.origin}/`),
    ),
    sources: asked.filter((url) => !url.startsWith("data:")),
    plots: document.querySelectorAll("figure.plot svg").length,
    folded: document.querySelector("details pre > code") !== null,
  };
}

// A mark is what matplotlib draws in axes beside their background, ticks and frame.
function emptyPlots() {
  const found = [];
  for (const [number, svg] of document.querySelectorAll("figure.plot svg").entries()) {
    const figure = svg.closest("figure");
    const text = (element) => element?.textContent.trim();
    const child = (name) => [...svg.children].find((element) => element.localName === name);
    const title = svg.getAttribute("aria-label")?.trim() || text(child("title"));
    const name = `plot ${number + 1}${title ? `, ${title}` : ""}`;
    if (!title) found.push(["no title", name]);
    if (!text(child("desc"))) found.push(["no description", name]);
    const axes = [...svg.querySelectorAll("g[id]")].filter(({ id }) => /(^|[^a-z])axes_\d+$/.test(id));
    for (const area of axes.length ? axes : [svg]) {
      const frame = area === svg ? svg : (area.querySelector(":scope > [id*=patch_] > path") ?? svg);
      const box = frame.getBoundingClientRect();
      const near = (a, b) => Math.abs(a - b) < 1;
      const isMark = (shape) => {
        if (shape === frame || shape.closest("defs, clipPath, [id*='matplotlib.axis'], [id*=legend_]")) return false;
        const { left, right, top, bottom } = shape.getBoundingClientRect();
        if (right - left <= 0 && bottom - top <= 0) return false;
        const across = near(left, right) && (near(left, box.left) || near(left, box.right));
        const along = near(top, bottom) && (near(top, box.top) || near(top, box.bottom));
        if (shape.closest("[id*=patch_]") && (across || along)) return false;
        const whole = near(left, box.left) && near(right, box.right) && near(top, box.top) && near(bottom, box.bottom);
        if (area === svg && whole) return false;
        return right >= box.left && left <= box.right && bottom >= box.top && top <= box.bottom;
      };
      if (![...area.querySelectorAll("path, image, circle, rect, use, line, polyline, polygon")].some(isMark))
        found.push([`no marks in ${area.id || "it"}`, name]);
    }
  }
  return found;
}
