// Bundles the page into ../../build/preview/site: script, styles, fonts, Grafana's icons.
import { build } from 'esbuild';
import { cpSync, writeFileSync } from 'node:fs';

const out = process.argv[2];

// The code editor and the maps are never shown here, and are most of the bundle.
const withoutEditorsAndMaps = {
  name: 'without-editors-and-maps',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^(monaco-editor|@monaco-editor\/.*|ol(\/.*)?)$/ }, ({ path }) => ({
      path,
      namespace: 'empty',
    }));
    onLoad({ filter: /.*/, namespace: 'empty' }, () => ({
      contents: 'module.exports = new Proxy({}, { get: () => class {} });',
    }));
  },
};

await build({
  entryPoints: ['src/main.tsx'],
  bundle: true,
  minify: true,
  format: 'esm',
  splitting: true,
  jsx: 'automatic',
  outdir: out,
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: { '.svg': 'dataurl' },
  plugins: [withoutEditorsAndMaps],
  logLevel: 'warning',
});

// What Grafana serves from its public folder is not in its packages, but for the icons.
const font = (from, to) => cpSync(`node_modules/@fontsource/${from}`, `${out}/public/fonts/${to}`);
font('inter/files/inter-latin-400-normal.woff2', 'inter/Inter-Regular.woff2');
font('inter/files/inter-latin-400-italic.woff2', 'inter/Inter-Italic.woff2');
font('inter/files/inter-latin-500-normal.woff2', 'inter/Inter-Medium.woff2');
font('inter/files/inter-latin-500-italic.woff2', 'inter/Inter-MediumItalic.woff2');
const mono = 'L0xTDF4xlVMF-BfR8bXMIhJHg45mwgGEFl0_3vrtSM1J-gEPT5Ese6hmHSh0mQ.woff2';
font('roboto-mono/files/roboto-mono-latin-400-normal.woff2', `roboto/${mono}`);
const icons = 'public/build/img/icons';
cpSync('node_modules/@grafana/ui/dist/public/img/icons', `${out}/${icons}`, { recursive: true });
writeFileSync(
  `${out}/index.html`,
  '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">' +
    '<link rel="stylesheet" href="main.css"><div id="root"></div>' +
    '<script type="module" src="main.js"></script>',
);
