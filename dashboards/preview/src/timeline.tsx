// A stand-in for Grafana's state timeline, which its packages do not hold: on its axes and formats.
import { DataFrame, FieldType, getFieldDisplayName, GrafanaTheme2, TimeRange } from '@grafana/data';
import { AxisPlacement, ScaleDirection, ScaleOrientation } from '@grafana/schema';
import { UPlotChart, UPlotConfigBuilder, VizLegend, VizLayout } from '@grafana/ui';
import type uPlot from 'uplot';

interface Box {
  row: number;
  from: number;
  to: number;
  text: string;
  color: string;
}

interface Props {
  frames: DataFrame[];
  range: TimeRange;
  theme: GrafanaTheme2;
  width: number;
  height: number;
  rowHeight: number;
  legend: boolean;
  texts: boolean;
}

function rowsOf(frames: DataFrame[]): { names: string[]; boxes: Box[] } {
  const names: string[] = [];
  const boxes: Box[] = [];
  for (const frame of frames) {
    const times = frame.fields.find((field) => field.type === FieldType.time)!;
    for (const field of frame.fields.filter((each) => each !== times)) {
      const row = names.push(getFieldDisplayName(field, frame, frames)) - 1;
      const step = times.config.interval ?? 0;
      field.values.forEach((value: number | null, place: number) => {
        if (value === null) {
          return;
        }
        const { text, color } = field.display!(value);
        const from = times.values[place];
        const before = boxes[boxes.length - 1];
        if (before?.row === row && before.text === text && before.to >= from) {
          before.to = from + step;
        } else {
          boxes.push({ row, from, to: from + step, text, color: color ?? 'gray' });
        }
      });
    }
  }
  return { names, boxes };
}

function drawn(boxes: Box[], { range, rowHeight, texts, theme }: Props) {
  const end = range.to.valueOf();
  return (u: uPlot) => {
    const { ctx } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    ctx.font = `${theme.typography.fontSize * devicePixelRatio}px ${theme.typography.fontFamily}`;
    ctx.textBaseline = 'middle';
    for (const { row, from, to, text, color } of boxes) {
      const left = u.valToPos(from, 'x', true);
      const width = u.valToPos(Math.min(to, end), 'x', true) - left;
      const middle = u.valToPos(-row, 'y', true);
      const height = Math.abs(u.valToPos(0, 'y', true) - u.valToPos(1, 'y', true)) * rowHeight;
      ctx.fillStyle = color;
      ctx.fillRect(left, middle - height / 2, width, height);
      if (texts && ctx.measureText(text).width + 10 < width) {
        ctx.fillStyle = theme.colors.getContrastText(color);
        ctx.fillText(text, left + 6, middle);
      }
    }
    ctx.restore();
  };
}

function configOf(names: string[], { range, theme }: Props): UPlotConfigBuilder {
  const builder = new UPlotConfigBuilder('utc');
  builder.addScale({
    scaleKey: 'x',
    isTime: true,
    orientation: ScaleOrientation.Horizontal,
    direction: ScaleDirection.Right,
    range: () => [range.from.valueOf(), range.to.valueOf()],
  });
  builder.addScale({
    scaleKey: 'y',
    orientation: ScaleOrientation.Vertical,
    direction: ScaleDirection.Up,
    range: () => [0.5 - names.length, 0.5],
  });
  const time = { scaleKey: 'x', isTime: true, placement: AxisPlacement.Bottom, timeZone: 'utc' };
  builder.addAxis({ ...time, theme });
  builder.addAxis({
    scaleKey: 'y',
    placement: AxisPlacement.Left,
    theme,
    splits: names.map((_, row) => -row),
    values: names,
    grid: { show: false },
    ticks: { show: false },
  });
  return builder;
}

export function Timeline(props: Props) {
  const { frames, range, width, height } = props;
  const { names, boxes } = rowsOf(frames);
  const builder = configOf(names, props);
  builder.addHook('drawClear', drawn(boxes, props));
  const seen = new Map(boxes.map(({ text, color }) => [text, color]));
  const items = [...seen].map(([label, color]) => ({ label, color, yAxis: 1 }));
  const legend = props.legend ? (
    <VizLayout.Legend placement="bottom">
      <VizLegend items={items} displayMode={'list' as any} placement="bottom" />
    </VizLayout.Legend>
  ) : null;
  const ends = [range.from.valueOf(), range.to.valueOf()];
  return (
    <VizLayout width={width} height={height} legend={legend}>
      {(w: number, h: number) => <UPlotChart config={builder} data={[ends]} width={w} height={h} />}
    </VizLayout>
  );
}
