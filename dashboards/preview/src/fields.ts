// Field options: in Grafana its panel plugins register them, and they are no part of the packages.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  DataFrame,
  dataLinksOverrideProcessor,
  displayNameOverrideProcessor,
  FieldConfigOptionsRegistry,
  FieldConfigPropertyItem,
  FieldType,
  GrafanaTheme2,
  identityOverrideProcessor,
  ScopedVars,
  standardFieldConfigEditorRegistry,
  thresholdsOverrideProcessor,
  unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from '@grafana/data';

import { Panel, View } from './view';

const PROCESSORS: Record<string, FieldConfigPropertyItem['process']> = {
  displayName: displayNameOverrideProcessor,
  unit: unitOverrideProcessor,
  mappings: valueMappingsOverrideProcessor,
  thresholds: thresholdsOverrideProcessor,
  links: dataLinksOverrideProcessor,
};
const STANDARD = ['min', 'max', 'decimals', 'noValue', 'color', 'fieldMinMax', 'filterable'];

const GRAPH = {
  drawStyle: 'line',
  lineInterpolation: 'linear',
  lineWidth: 1,
  lineStyle: { fill: 'solid' },
  fillOpacity: 0,
  gradientMode: 'none',
  spanNulls: false,
  showPoints: 'auto',
  pointSize: 5,
  stacking: { mode: 'none', group: 'A' },
  axisPlacement: 'auto',
  axisLabel: '',
  axisColorMode: 'text',
  axisBorderShow: false,
  axisCenteredZero: false,
  scaleDistribution: { type: 'linear' },
  hideFrom: { tooltip: false, viz: false, legend: false },
  thresholdsStyle: { mode: 'off' },
};
const TABLE = { align: 'auto', cellOptions: { type: 'auto' }, inspect: false };
const DEFAULTS: Record<string, Record<string, unknown>> = { timeseries: GRAPH, table: TABLE };

function item(id: string, more: Partial<FieldConfigPropertyItem>): FieldConfigPropertyItem {
  const nothing = () => null;
  return {
    id,
    path: id,
    name: id,
    editor: nothing,
    override: nothing,
    process: identityOverrideProcessor,
    shouldApply: () => true,
    ...more,
  } as FieldConfigPropertyItem;
}

function standardItems(): FieldConfigPropertyItem[] {
  const special = Object.entries(PROCESSORS).map(([id, process]) => item(id, { process }));
  return [...special, ...STANDARD.map((id) => item(id, {}))];
}

export function registerFieldOptions(): void {
  standardFieldConfigEditorRegistry.setInit(standardItems);
}

function registryOf(panel: Panel): FieldConfigOptionsRegistry {
  const defaults = DEFAULTS[panel.type] ?? {};
  const overridden = (panel.fieldConfig.overrides ?? []).flatMap((rule: any) =>
    rule.properties.map((property: any) => property.id),
  );
  const names = new Set([
    ...Object.keys(defaults),
    ...Object.keys(panel.fieldConfig.defaults?.custom ?? {}),
    ...overridden
      .filter((id: string) => id.startsWith('custom.'))
      .map((id: string) => id.slice('custom.'.length)),
  ]);
  const custom = [...names].map((name) =>
    item(`custom.${name}`, {
      path: name,
      isCustom: true,
      process: (value) => value ?? defaults[name],
      shouldApply: (field) => name !== 'axisLabel' || field.type !== FieldType.time,
    }),
  );
  return new FieldConfigOptionsRegistry(() => [...standardItems(), ...custom]);
}

export function replacerOf(view: View) {
  const texts = new Map(view.variables.map(({ name, text }) => [name, text]));
  return (text: string, scoped?: ScopedVars): string =>
    text.replace(/\$\{([^}:]+)(?::\w+)?\}|\$(\w+)/g, (whole, braced, bare) => {
      const name = braced ?? bare;
      const labels = scoped?.__dataContext?.value.field?.labels ?? {};
      const label = /^__field\.labels\.(.+)$/.exec(name)?.[1];
      return label ? (labels[label] ?? '') : (texts.get(name) ?? whole);
    });
}

export function withFieldConfig(
  data: DataFrame[],
  panel: Panel,
  view: View,
  theme: GrafanaTheme2,
): DataFrame[] {
  const frames = applyFieldOverrides({
    data,
    theme,
    timeZone: 'utc',
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registryOf(panel),
    replaceVariables: replacerOf(view),
  });
  // afterwards, or the names of overrides are lost in a table's header
  cacheFieldDisplayNames(frames);
  return frames;
}
