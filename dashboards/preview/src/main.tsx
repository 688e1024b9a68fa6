// Draws one dashboard in Grafana's grid; the driver waits for window.__ready.
import './page.css';

import {
  createTheme,
  DataFrame,
  dateTime,
  GrafanaTheme2,
  standardTransformers,
  standardTransformersRegistry,
  ThemeContext,
  TimeRange,
  transformDataFrame,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles } from '@grafana/ui';
import { flushSync } from 'react-dom';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';

import { registerFieldOptions, replacerOf, withFieldConfig } from './fields';
import { framesOf } from './frames';
import { Drawn, PanelFrame } from './panels';
import { Panel, View } from './view';

const COLUMNS = 24;
const ROW = 30;
const GAP = 8;
const MARGIN = 16;

declare global {
  interface Window {
    __ready?: boolean;
  }
}

function registerTransformers(): void {
  const transformers = Object.values(standardTransformers);
  // one of them is in the list twice
  const unique = new Map(transformers.map((transformation) => [transformation.id, transformation]));
  const registered = [...unique.values()].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: () => Promise.resolve(transformation),
    aliasIds: transformation.aliasIds,
    editor: () => null,
    imageDark: '',
    imageLight: '',
  }));
  standardTransformersRegistry.setInit(() => registered as any);
}

async function prepared(panel: Panel, view: View, theme: GrafanaTheme2): Promise<DataFrame[]> {
  const frames = framesOf(view.answers[panel.id] ?? []);
  const context = { interpolate: replacerOf(view) };
  const changed = await lastValueFrom(
    transformDataFrame(panel.transformations ?? [], frames, context),
  );
  return withFieldConfig(changed, panel, view, theme);
}

function Place({ drawn }: { drawn: Drawn }) {
  const { panel, view } = drawn;
  const { x, y, w, h } = panel.gridPos;
  const column = (view.width - 2 * MARGIN + GAP) / COLUMNS;
  const left = x * column;
  const top = y * (ROW + GAP);
  const width = w * column - GAP;
  const height = h * (ROW + GAP) - GAP;
  const inside =
    panel.type === 'row' ? (
      <h3 className="row">{replacerOf(view)(panel.title ?? '')}</h3>
    ) : (
      <PanelFrame {...drawn} width={width} height={height} />
    );
  return (
    <div data-panel={panel.id} style={{ position: 'absolute', left, top, width, height }}>
      {inside}
    </div>
  );
}

function Page({ view, all }: { view: View; all: Drawn[] }) {
  const bottom = Math.max(...view.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  return (
    <div className="page" style={{ width: view.width, padding: MARGIN }}>
      <header>
        <strong>{view.title}</strong>
        {view.variables.map(({ name, label, text }) => (
          <span key={name} className="variable">
            <b>{label}</b> {text}
          </span>
        ))}
        {view.links.map((link) => (
          <span key={link} className="link">
            {link}
          </span>
        ))}
      </header>
      <div style={{ position: 'relative', height: bottom * (ROW + GAP) }}>
        {all.map((drawn) => (
          <Place key={drawn.panel.id} drawn={drawn} />
        ))}
      </div>
      <footer>{view.caption}</footer>
    </div>
  );
}

async function main(): Promise<void> {
  const view: View = await (await fetch('view.json')).json();
  const theme = createTheme({ colors: { mode: view.theme } });
  await initPluginTranslations('grafana');
  registerFieldOptions();
  registerTransformers();
  const [from, to] = [dateTime(view.begin * 1000), dateTime(view.end * 1000)];
  const range: TimeRange = { from, to, raw: { from, to } };
  const all = await Promise.all(
    view.panels.map(async (panel) => {
      return { panel, frames: await prepared(panel, view, theme), view, range, theme };
    }),
  );
  const root = createRoot(document.getElementById('root')!);
  const themed = (children: React.ReactNode) => (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      {children}
    </ThemeContext.Provider>
  );
  // the fonts are declared there, and a canvas does not wait for them
  flushSync(() => root.render(themed(null)));
  const fonts = ['400 14px Inter', '500 14px Inter', '400 14px "Roboto Mono"'];
  const loaded = await Promise.all(fonts.map((font) => document.fonts.load(font)));
  if (loaded.some((faces) => faces.length === 0)) {
    throw new Error('a font is missing');
  }
  document.documentElement.style.setProperty('--text', theme.colors.text.secondary);
  document.body.style.background = theme.colors.background.canvas;
  root.render(themed(<Page view={view} all={all} />));
  await new Promise((done) => setTimeout(done, 300));
  window.__ready = true;
}

main().catch((error) => {
  console.error(error);
  window.__ready = true;
});
