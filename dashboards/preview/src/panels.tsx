// One panel in its frame, drawn by Grafana's own components.
import {
  DataFrame,
  FieldDisplay,
  getDisplayValueAlignmentFactors,
  getFieldDisplayName,
  getFieldDisplayValues,
  GrafanaTheme2,
  renderTextPanelMarkdown,
  TimeRange,
  VizOrientation,
} from '@grafana/data';
import { BarGauge, BigValue, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

import { replacerOf } from './fields';
import { Timeline } from './timeline';
import { Panel, View } from './view';

export const STAND_INS = ['state-timeline'];

export interface Drawn {
  panel: Panel;
  frames: DataFrame[];
  view: View;
  range: TimeRange;
  theme: GrafanaTheme2;
}

type Sized = Drawn & { width: number; height: number };

export function PanelFrame(props: Sized) {
  const { panel, view, width, height } = props;
  const title = replacerOf(view)(panel.title ?? '');
  const shown = STAND_INS.includes(panel.type) ? `${title} (stand-in)` : title;
  return (
    <PanelChrome
      title={shown}
      description={panel.description}
      width={width}
      height={height}
      padding={panel.type === 'table' ? 'none' : 'md'}
      hoverHeader={!title}
      displayMode={panel.transparent ? 'transparent' : 'default'}
    >
      {(innerWidth, innerHeight) => (
        <Visualisation {...props} width={innerWidth} height={innerHeight} />
      )}
    </PanelChrome>
  );
}

function Visualisation(props: Sized) {
  const { panel, frames } = props;
  if (panel.type === 'text') {
    return <TextPanel {...props} />;
  }
  if (!frames.some((frame) => frame.length > 0)) {
    const text = panel.fieldConfig.defaults?.noValue ?? 'No data';
    return <div className="nothing">{text}</div>;
  }
  switch (panel.type) {
    case 'stat':
      return <StatPanel {...props} />;
    case 'bargauge':
      return <BarGaugePanel {...props} />;
    case 'timeseries':
      return <TimeSeriesPanel {...props} />;
    case 'table':
      return <TablePanel {...props} />;
    case 'state-timeline':
      return <TimelinePanel {...props} />;
    default:
      throw new Error(`panel type ${panel.type} cannot be drawn`);
  }
}

function TextPanel({ panel, view }: Sized) {
  const html = renderTextPanelMarkdown(replacerOf(view)(panel.options.content));
  return <div className="markdown-html" dangerouslySetInnerHTML={{ __html: html }} />;
}

function valuesOf({ panel, frames, view, theme }: Sized, sparkline: boolean): FieldDisplay[] {
  return getFieldDisplayValues({
    data: frames,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: replacerOf(view),
    sparkline,
    theme,
    timeZone: 'utc',
  });
}

function StatPanel(props: Sized) {
  const { panel, theme, width, height } = props;
  const { options } = panel;
  const named = panel.fieldConfig.defaults?.displayName || !panel.title;
  const auto = options.textMode === undefined || options.textMode === 'auto';
  const textMode = auto && named ? 'value_and_name' : (options.textMode ?? 'auto');
  return (
    <VizRepeater<FieldDisplay, any>
      getValues={() => valuesOf(props, options.graphMode === 'area')}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={props.frames}
      width={width}
      height={height}
      itemSpacing={3}
      renderCounter={0}
      autoGrid
      orientation={options.orientation ?? VizOrientation.Auto}
      renderValue={({ value, width, height, alignmentFactors, count }) => (
        <BigValue
          value={value.display}
          sparkline={value.sparkline}
          count={count}
          colorMode={options.colorMode ?? 'value'}
          graphMode={options.graphMode ?? 'none'}
          justifyMode={options.justifyMode ?? 'auto'}
          textMode={textMode}
          text={options.text}
          alignmentFactors={alignmentFactors}
          disableWideLayout={options.wideLayout === false}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

function BarGaugePanel(props: Sized) {
  const { panel, theme, width, height } = props;
  const { options } = panel;
  return (
    <VizRepeater<FieldDisplay, any>
      getValues={() => valuesOf(props, false)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={props.frames}
      width={width}
      height={height}
      minVizWidth={8}
      minVizHeight={16}
      maxVizHeight={options.maxVizHeight ?? 300}
      itemSpacing={10}
      renderCounter={0}
      orientation={options.orientation ?? VizOrientation.Auto}
      renderValue={({ value, width, height, alignmentFactors, orientation }) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex ?? 0)}
          text={options.text}
          displayMode={options.displayMode ?? 'gradient'}
          valueDisplayMode={options.valueMode}
          namePlacement={options.namePlacement}
          showUnfilled={options.showUnfilled ?? true}
          alignmentFactors={alignmentFactors}
          orientation={orientation}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

// Grafana's exported TimeSeries looks for the colour of a name before it has the display name
function named(frames: DataFrame[]): DataFrame[] {
  return frames.map((frame) => ({
    ...frame,
    fields: frame.fields.map((field) => ({
      ...field,
      name: getFieldDisplayName(field, frame, frames),
    })),
  }));
}

function TimeSeriesPanel({ panel, frames, range, width, height }: Sized) {
  const legend = { showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [] };
  return (
    <TimeSeries
      frames={named(frames)}
      timeRange={range}
      timeZone="utc"
      legend={{ ...legend, ...panel.options.legend }}
      width={width}
      height={height}
    />
  );
}

function TablePanel({ panel, frames, range, width, height }: Sized) {
  const { options } = panel;
  return (
    <TableNG
      data={frames[options.frameIndex ?? 0]}
      width={width}
      height={height}
      noHeader={options.showHeader === false}
      sortBy={options.sortBy}
      cellHeight={options.cellHeight}
      frozenColumns={options.frozenColumns?.left}
      fieldConfig={panel.fieldConfig}
      timeRange={range}
      noValue={panel.fieldConfig.defaults?.noValue}
    />
  );
}

function TimelinePanel({ panel, frames, range, theme, width, height }: Sized) {
  return (
    <Timeline
      frames={frames}
      range={range}
      theme={theme}
      width={width}
      height={height}
      rowHeight={panel.options.rowHeight ?? 0.9}
      legend={panel.options.legend?.showLegend ?? true}
      texts={panel.options.showValue !== 'never'}
    />
  );
}
