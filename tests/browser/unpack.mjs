// Unpacks the browser, and the libraries and fonts that may be missing here, into ./unpacked.
import { mkdirSync } from "node:fs";
import { inflate } from "@sparticuz/chromium";

process.env.TMPDIR = `${process.cwd()}/unpacked`; // where the package puts things
mkdirSync(process.env.TMPDIR);
for (const part of ["al2023.tar.br", "fonts.tar.br", "chromium.br"]) {
  await inflate(`node_modules/@sparticuz/chromium/bin/${part}`);
}
